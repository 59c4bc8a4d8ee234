"""A batch that is refused for its share of SMEM is asked for again with all of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate
from rpa_tune.interop.simulate import ForeignTask, simulate_foreign

BATCHES = tuple(Batch(q_lens=(1,), kv_lens=(n,), num_decode=1) for n in (10, 20, 30))
SHORT = simulate._Refusal("ScheduleTooLongError: too long", is_smem=True)
BROKEN = simulate._Refusal("deadlock")


def row(time_us):
    return {
        "RPAd": SimpleNamespace(time_us=time_us, set_us=(time_us, 2 * time_us), unknown={"odd": 1})
    }


def ask(monkeypatch, share, answers):
    """The answer, and the (share, batches) of each compile; `answers` are rows by share."""
    asked = []

    def serve(task, call, batches):
        asked.append((call.smem_share, sorted(batches)))
        return {i: answers[call.smem_share][i] for i in batches}, 1.5

    told = {None: share, 1.0: 1.0}
    monkeypatch.setattr(simulate, "_serve", serve)
    monkeypatch.setattr(
        simulate, "_bind", lambda task, smem_share: SimpleNamespace(smem_share=told[smem_share])
    )
    task = ForeignTask(
        kernel="batched", root=Path(), chip=load_chip("v6e"), problem=None, blocks=None,
        batches=BATCHES,
    )  # fmt: skip
    return simulate_foreign(task), asked


def test_only_what_lacks_smem_is_asked_for_again(monkeypatch):
    first, second = [row(1.0), SHORT, BROKEN], [None, row(5.0), None]
    answer, asked = ask(monkeypatch, 0.5, {0.5: first, 1.0: second})
    assert asked == [(0.5, [0, 1, 2]), (1.0, [1])]
    assert answer.batch_us == (1.0, 5.0, None)
    assert answer.call_us == ({"RPAd": 1.0}, {"RPAd": 5.0}, {})
    assert answer.set_us == ((1.0, 2.0), (5.0, 10.0), ())
    assert answer.detail == "batch 2: deadlock"
    assert answer.compile_s == 3.0
    assert answer.unknown == {"odd": 2}


@pytest.mark.parametrize(("share", "refusal"), [(1.0, SHORT), (0.5, BROKEN)])
def test_nothing_is_asked_twice_where_more_smem_cannot_help(monkeypatch, share, refusal):
    answer, asked = ask(monkeypatch, share, {share: [refusal] * 3})
    assert asked == [(share, [0, 1, 2])]
    assert answer.batch_us == ()
    assert answer.detail == refusal.reason


def test_a_batch_that_no_share_serves_says_so(monkeypatch):
    answer, _ = ask(monkeypatch, 0.5, {0.5: [row(1.0), SHORT, SHORT],
                                       1.0: [None, row(2.0), SHORT]})  # fmt: skip
    assert answer.batch_us == (1.0, 2.0, None)
    assert answer.detail == f"batch 2: {SHORT.reason}"
