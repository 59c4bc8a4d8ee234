"""Two configs side by side, as values; `tests/pure/cli/test_compare_text.py` has the command."""

from dataclasses import replace

import pytest
from pure.evaluate.builders import WORKLOAD, candidate, timeline

from rpa_tune.analysis.compare import Change, compare
from rpa_tune.analysis.explain import Explanation
from rpa_tune.analysis.question import Question
from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.simulated import Simulation
from rpa_tune.llo.timeline import LoopRegion, SlotUse
from rpa_tune.models.catalog import load_model


def loop(first, last, cycles):
    return LoopRegion(first=first, last=last, depth=1, entries=1, trips=1, bundles=1,
                      cycles=cycles, share=0.1)  # fmt: skip


def explained(*, owners, loops=(), slots=(), time_us=1.0, status=Status.OK, **config):
    asked = candidate(**config)
    question = Question(candidate=asked, workload=WORKLOAD, model="m", is_default=False, given={},
                        loaded=load_model("llama3-8b"))  # fmt: skip
    one = timeline(owners=owners, time_us=time_us)
    uses = {**one.slots, **{n: SlotUse(instructions=i, share=0.5) for n, i in dict(slots).items()}}
    # The second batch of the workload takes most of the time.
    both = (replace(one, time_us=0.1), replace(one, time_us=5.0, loops=loops, slots=uses))
    answer = Evaluation(candidate=asked, fidelity=Fidelity.SIMULATED, status=status, detail="VMEM",
                        time_us=time_us if status is Status.OK else None,
                        metrics={"cycles_by_owner": owners, "bound_by": "hbm"})  # fmt: skip
    return Explanation(question=question, lower_bound_us=0.5,
                       simulation=Simulation(evaluation=answer, timelines=both))  # fmt: skip


def test_what_changed_most_comes_first_in_each_kind():
    before = explained(owners={"issue": 100, "sync": 50, "launch": 0}, slots={"MXU": 4, "VALU": 9},
                       time_us=2.0)  # fmt: skip
    after = explained(owners={"issue": 90, "sync": 80, "launch": 0}, slots={"MXU": 40, "VALU": 9},
                      time_us=3.0, bkv_sz=256)  # fmt: skip
    found = compare(before, after)
    assert found.causes == (
        Change(name="sync", before=50, after=80),
        Change(name="issue", before=100, after=90),
    )
    assert found.units[0] == Change(name="MXU", before=4, after=40)
    assert found.ratio == 1.5
    made = found.to_dict()
    assert made["causes"][0]["change"] == 30
    assert (made["before"]["config"]["bkv_sz"], made["after"]["config"]["bkv_sz"]) == (128, 256)


def test_loops_are_matched_by_their_place_in_the_nest():
    before = explained(owners={"issue": 1},
                       loops=(loop(10, 90, 500), loop(20, 40, 100), loop(50, 80, 300)))  # fmt: skip
    after = explained(owners={"issue": 1}, bkv_sz=256,
                      loops=(loop(110, 190, 700), loop(120, 140, 90), loop(150, 180, 550),
                             loop(200, 300, 5)))  # fmt: skip
    found = {change.name: (change.before, change.after) for change in compare(before, after).loops}
    assert found == {"1": (500, 700), "1.1": (100, 90), "1.2": (300, 550), "2": (None, 5)}


def test_what_cannot_be_compared_is_refused():
    good = explained(owners={"issue": 1})
    bad = explained(owners={"issue": 1}, status=Status.OUT_OF_MEMORY, bkv_sz=256)
    with pytest.raises(UsageError, match=r"bkv_sz=256.* has no time to compare: out_of_memory"):
        compare(good, bad)
    elsewhere = explained(owners={"issue": 1}, chip="v5e")
    with pytest.raises(UsageError, match="one problem, chip and workload"):
        compare(good, elsewhere)
