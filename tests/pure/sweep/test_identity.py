"""Whether a run may go on with the search of another one."""

from dataclasses import replace

import pytest

from rpa_tune.errors import StoreError
from rpa_tune.store.notes import StudyPlan
from rpa_tune.sweep.identity import require_same_samplers, versions_text

PLAN = StudyPlan(
    name="v6e/decode", study="d1", num_evaluations=20, heuristic=None, stamp=("k", "s"),
    sampler={"kind": "tpe", "optuna": "4.9.0"},
)  # fmt: skip


class Begun:
    """As much of a study as is asked for."""

    def __init__(self, note: StudyPlan) -> None:
        self.digest = note.study
        self._note = note

    def note(self) -> StudyPlan:
        return self._note


TODAY = replace(PLAN, sampler={"kind": "tpe", "optuna": "5.0.0"})


def test_another_version_of_the_same_sampler_is_refused_with_a_way_out() -> None:
    with pytest.raises(
        StoreError, match=r"v6e/decode began with optuna 4\.9\.0; optuna 5\.0\.0 would"
    ) as e:
        require_same_samplers([Begun(TODAY)], [PLAN], "store.jsonl")
    assert e.value.where == "store.jsonl"
    assert e.value.hint.startswith("install optuna 4.9.0, give this run another --store")


@pytest.mark.parametrize(
    "earlier",
    [
        replace(PLAN, study="d2"),  # another study
        replace(PLAN, stamp=("k2", "s")),  # another kernel: nothing to go on with
        replace(PLAN, sampler={"kind": "kriging"}),  # another search
        replace(PLAN, sampler={}),  # a store of a version that did not say
        TODAY,
    ],
    ids=["study", "stamp", "kind", "old", "same"],
)
def test_what_is_another_search_or_the_same_one_goes_on(earlier: StudyPlan) -> None:
    require_same_samplers([Begun(TODAY)], [earlier], "store.jsonl")


def test_any_of_several_plans_and_studies_can_refuse() -> None:
    other = replace(TODAY, study="d2", name="other")
    studies = [Begun(other), Begun(TODAY)]
    with pytest.raises(StoreError, match="v6e/decode"):
        require_same_samplers(studies, [TODAY, PLAN], "s")
    require_same_samplers([], [PLAN], "s")


def test_versions_are_said_by_package() -> None:
    assert versions_text({"kind": "gp", "optuna": "5.0.0", "torch": "2.15.0"}) == (
        "optuna 5.0.0, torch 2.15.0"
    )
    assert versions_text({"kind": "gp"}) == "no such package"
