"""A batch that is refused for its share of SMEM is asked for again with all of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Status
from rpa_tune.compile.cache import Compiled
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
        batches=BATCHES, cache_dir=Path(),
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


@pytest.mark.parametrize("status", [Status.OK, Status.OUT_OF_MEMORY, Status.COMPILE_FAILED])
def test_what_was_compiled_once_is_not_compiled_again(monkeypatch, tmp_path, status):
    compiles = []
    schedule = tmp_path / "schedule-final_bundles.txt"
    schedule.write_text("LH: loop")

    def compile_call(call, chip):
        compiles.append(call.kernel_name)
        return Compiled(
            status=status, bundles=schedule if status is Status.OK else None, compile_s=7.0
        )

    monkeypatch.setattr(simulate, "compile_call", compile_call)
    monkeypatch.setattr(simulate.worker, "worker_folder", lambda: tmp_path)
    monkeypatch.setattr(simulate.dumps, "find_bundles", lambda folder, name: schedule)
    call = SimpleNamespace(smem_share=0.5, function=None, arguments=(), donated=(), pretend=None)

    def ask_for(blocks, names):
        task = ForeignTask(
            kernel="batched", root=Path(), chip=load_chip("v6e"), problem=None, blocks=blocks,
            batches=BATCHES, cache_dir=tmp_path,
        )  # fmt: skip
        return simulate._schedules(task, call, names)

    first, again = ask_for(None, ["RPAd", "RPAm"]), ask_for(None, ["RPAd", "RPAm"])
    kept = status is not Status.COMPILE_FAILED
    assert len(compiles) == (1 if kept else 2)
    assert [one.from_cache for one in (*first.values(), *again.values())] == [
        False, False, kept, kept,
    ]  # fmt: skip
    assert {one.status for one in again.values()} == {status}
    if status is Status.OK:
        assert simulate.dumps.unpack_bundles(again["RPAm"].bundles, tmp_path).read_text() == (
            "LH: loop"
        )
    ask_for((1, 2), ["RPAd"])  # other block sizes are another function
    assert len(compiles) == (2 if kept else 3)
