"""What is advised from neighbours, and where their times come from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.analysis.neighbours import (
    BOUNDED,
    STORED,
    TRIED,
    Neighbour,
    advice,
    find_stored,
    other_problems,
    read_stores,
    try_neighbours,
)
from rpa_tune.analysis.question import make_question
from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.decide.promote import ERROR_PCT
from rpa_tune.errors import StoreError
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import provenance
from rpa_tune.store.journal import Journal

QUESTION = make_question(
    chip="v6e", family="decode", model="llama3-8b",
    workload=Batch(q_lens=(1, 1), kv_lens=(700, 90), num_decode=2),
)  # fmt: skip


def neighbour(change: str, us: float | None) -> Neighbour:
    return Neighbour(change=change, question=QUESTION, how=TRIED, status="ok", time_us=us)


def answer(candidate, us: float | None = 50.0, *, fidelity=Fidelity.SIMULATED, **versions):
    return Evaluation(
        candidate=candidate,
        fidelity=fidelity,
        status=Status.OK if us else Status.CRASHED,
        time_us=us,
        provenance={**provenance(QUESTION.candidate.family.digest), **versions},
    )


@pytest.mark.parametrize(
    ("us", "text"),
    [
        ([], ""),
        ([None], ""),
        ([80.0, 50.0, None], "n1 takes 50.0 us instead of 100.0, 2.00x (simulated)"),
    ],
)  # fmt: skip
def test_advice_is_the_fastest_if_it_is_faster_than_the_error(us, text: str) -> None:
    found = [neighbour(f"n{i}", time_us) for i, time_us in enumerate(us)]
    assert advice(found, 100.0) == text


def test_what_is_within_the_simulators_error_is_no_advice() -> None:
    error_pct = ERROR_PCT[Fidelity.SIMULATED]
    edge_us = 100.0 / (1 + error_pct / 100)
    found = [neighbour("n0", 120.0), neighbour("n1", edge_us * 1.001)]
    text = advice(found, 100.0)
    assert text.startswith(
        f"none of 2 tried is faster by more than the simulator's error of {error_pct:g} %; the "
        "fastest, n1, takes"
    )
    found.append(neighbour("n2", edge_us * 0.999))
    assert advice(found, 100.0).startswith("n2 takes")


def test_the_json_form_has_a_speedup_where_there_is_a_time() -> None:
    data = neighbour("n", 50.0).to_dict(100.0)
    assert (data["speedup"], data["page_size"], data["kv_dtype"]) == (2.0, 128, "bfloat16")
    assert set(data["config"]) == {"bkv_sz", "bkv_csz", "seqs_per_step", "num_buffers", "bq_sz"}
    bounded = Neighbour(change="n", question=QUESTION, how=BOUNDED, bound_us=101.0)
    data = bounded.to_dict(100.0)
    assert (data["speedup"], data["status"], data["lower_bound_us"]) == (None, None, 101.0)


def test_other_problems_are_pages_next_to_its_own_and_another_cache() -> None:
    found = dict(other_problems(QUESTION))
    assert {change: (q.candidate.problem.page_size, q.candidate.problem.kv_dtype)
            for change, q in found.items()} == {
        "page size 256 instead of 128": (256, "bfloat16"),
        "page size 64 instead of 128": (64, "bfloat16"),
        "float8_e4m3fn cache instead of bfloat16": (128, "float8_e4m3fn"),
    }  # fmt: skip
    # A config that a person gave stays, and must fit the other pages.
    given = make_question(**{**QUESTION.given, "config": {"bkv_sz": 128, "bkv_csz": 128}})
    for other in dict(other_problems(given)).values():
        assert other.candidate.config == given.candidate.config


def test_stores_know_the_same_study_and_neighbours_of_todays_versions() -> None:
    own = QUESTION.candidate
    config = replace(own.config, num_buffers=own.config.num_buffers - 1)
    near = replace(own, config=config)
    (change, other), *_ = others = other_problems(QUESTION)
    answers = [
        answer(own),
        answer(near, 60.0),
        answer(near, 40.0),  # the last one counts
        answer(other.candidate, None),
        answer(replace(own, chip=load_chip("v5e"))),
        answer(replace(near, config=replace(config, bq_sz=32)), kernel="old"),
        answer(replace(near, config=replace(config, bq_sz=32)), fidelity=Fidelity.MEASURED),
    ]
    found = find_stored(QUESTION, lambda: others, answers)
    said = f"num_buffers={config.num_buffers} instead of {own.config.num_buffers}"
    assert [(n.change, n.how, n.status, n.time_us) for n in found] == [
        (said, STORED, "ok", 40.0),
        (change, STORED, "crashed", None),
    ]


def test_stores_that_know_nothing_ask_for_no_other_problem() -> None:
    def others():
        raise AssertionError("not needed")

    assert find_stored(QUESTION, others, []) == []


def test_the_most_promising_are_tried_and_the_hopeless_are_not() -> None:
    asked, said = [], []

    def evaluate_all(candidates, workload):
        asked.extend(candidates)
        return [answer(c, 10.0) for c in candidates]

    def tried(base_us, *, most, known=()):
        asked.clear()
        said.clear()
        return try_neighbours(
            QUESTION, lambda: others, SimpleNamespace(evaluate_all=evaluate_all),
            most=most, base_us=base_us, known=known, said=said.append,
        )  # fmt: skip

    others = other_problems(QUESTION)
    found = tried(1e9, most=2)
    assert [n.how for n in found] == [TRIED, TRIED]
    assert len(asked) == 2
    assert said[0].startswith("1 of 2: ")
    assert said[0].endswith(": 10.0 us")
    # What is known is not asked again, and a bound above the time to beat is said as such.
    again = tried(1e9, most=2, known=found)
    assert not {n.question.candidate.digest for n in found} & {c.digest for c in asked}
    assert len(again) == 2
    hopeless = tried(1e-9, most=5)
    assert {n.how for n in hopeless} == {BOUNDED}
    assert asked == said == []
    bounds = [n.bound_us for n in hopeless]
    assert bounds == sorted(bounds)
    assert len(hopeless) > len(others)


def test_named_stores_must_be_stores_and_others_are_left_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.append(answer(QUESTION.candidate))
    (tmp_path / "b.jsonl").write_text("nothing\n")
    said: list[str] = []
    assert len(list(read_stores([], tmp_path, said.append))) == 1
    assert said == [f"{tmp_path / 'b.jsonl'} is left out: not a store: line 1 is no header"]
    with pytest.raises(StoreError):
        list(read_stores([tmp_path / "b.jsonl"], tmp_path, said.append))
    assert len(list(read_stores([tmp_path / "a.jsonl"], tmp_path / "none", said.append))) == 1
