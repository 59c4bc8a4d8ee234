"""Which answers are asked for again, and when: by the store, and by the study they end."""

from dataclasses import replace

import pytest
from fake_sweep import make_evaluators, make_study

from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.doubt import fail_alike, is_settled, reason_of
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch

STUDY = make_study()
TIMEOUTS = [Status.COMPILE_TIMEOUT, Status.RUN_TIMEOUT]


def failed(index, status, detail="made up"):
    evaluator = make_evaluators()[Fidelity.SIMULATED]
    answer = evaluator.answer(STUDY.candidate(STUDY.space().configs[index]))
    if status is Status.OK:
        return answer
    return replace(answer, status=status, detail=detail, time_us=None, batch_us=())


def known(store, answer):
    stamp = stamp_of(answer.provenance)
    return store.find(answer.candidate, Fidelity.SIMULATED, stamp)


@pytest.mark.parametrize("status", TIMEOUTS)
def test_a_timeout_is_asked_again_by_every_run_and_not_twice_by_one(tmp_path, status):
    late, fine = failed(0, status), failed(1, Status.OK)
    for _ in range(3):
        with Journal(tmp_path / "store.jsonl") as store:
            assert known(store, late) is None
            store.append(fine)
            store.append(late)
            assert known(store, late) == late
    with Journal(tmp_path / "store.jsonl") as store:
        store.append(failed(0, Status.OK))
    with Journal(tmp_path / "store.jsonl") as store:
        assert known(store, late).ok


def test_answers_of_other_shards_count_as_those_of_earlier_runs(tmp_path):
    late = failed(0, Status.COMPILE_TIMEOUT)
    others = [late, failed(1, Status.OK)]
    with Journal(tmp_path / "store.jsonl", also_known=others) as store:
        assert known(store, late) is None
        assert known(store, others[1]) == others[1]


@pytest.mark.parametrize("status", [Status.COMPILE_FAILED, Status.NOT_UNDERSTOOD])
def test_a_study_in_which_everything_fails_alike_is_asked_again(tmp_path, status):
    alike = [failed(i, status, f"line {i}: no") for i in range(3)]
    other = failed(3, status, "something else")
    with Journal(tmp_path / "store.jsonl") as store:
        for answer in alike:
            store.append(answer)
            assert known(store, answer) == answer
    with Journal(tmp_path / "store.jsonl") as store:
        assert [known(store, answer) for answer in alike] == [None] * 3
        store.append(alike[0])
        assert known(store, alike[0]) == alike[0]
        store.append(other)
    with Journal(tmp_path / "store.jsonl") as store:
        assert [known(store, answer) for answer in alike] == alike


def test_one_time_or_a_failure_of_the_candidates_own_is_news(tmp_path):
    for news in (Status.OK, Status.OUT_OF_MEMORY, Status.WRONG_ANSWER, Status.INFEASIBLE):
        assert not fail_alike([failed(0, Status.COMPILE_FAILED), failed(1, news)])
        assert not fail_alike([failed(1, news)])
    assert not fail_alike([])


def test_reasons_are_compared_without_the_particulars_of_a_candidate():
    texts = [
        "F0101 12:00:01.5 /tmp/rpa-tune-ab12/worker1/x.cc:17] Check failed: 0x7f01 bq8 kernel",
        "F0202 13:10:59.9 /tmp/rpa-tune-zz9_/worker22/x.cc:17] Check failed: 0x9a bq16 kernel",
    ]
    assert len({reason_of(failed(0, Status.CRASHED, text)) for text in texts}) == 1
    assert reason_of(failed(0, Status.CRASHED, "x")) != reason_of(failed(0, Status.CRASHED, "y"))
    assert reason_of(failed(0, Status.CRASHED)) != reason_of(failed(0, Status.COMPILE_FAILED))


def test_a_crash_is_settled_by_the_second_attempt_whoever_made_the_first():
    settled = [
        is_settled(Status.CRASHED, num_here=here, was_before=before)
        for here, before in ((1, False), (2, False), (0, True), (1, True))
    ]
    assert settled == [False, True, False, True]
    assert is_settled(Status.COMPILE_FAILED, num_here=0, was_before=True)


def run(folder, **simulated):
    evaluators = make_evaluators(**simulated)
    with Journal(folder / "store.jsonl") as store:
        (result,) = Sweep(evaluators=evaluators, journal=store, watch=Watch()).run([STUDY])
    return result, evaluators[Fidelity.SIMULATED].asked


BROKEN = [Status.COMPILE_FAILED, Status.COMPILE_TIMEOUT, Status.NOT_UNDERSTOOD, Status.RUN_FAILED]


@pytest.mark.parametrize("status", BROKEN)
def test_a_study_gives_up_after_three_and_the_next_run_makes_the_whole_table(tmp_path, status):
    calm, asked_calmly = run(tmp_path / "calm")
    for _ in range(2):  # while it lasts, each run asks the same three
        broken, asked = run(tmp_path, statuses=lambda config: status)
        assert asked == asked_calmly[:3]
        assert asked[0].config == STUDY.heuristic()
        assert (broken.row(), broken.verdict) == (None, "no config works")
        reasons = [stop.reason for stop in broken.stops]
        assert reasons.count(status.value) == 3
        assert reasons.count("gave up") == len(reasons) - 3
        assert len({stop.candidate for stop in broken.stops}) == len(reasons)
        assert len(reasons) >= len(broken.space.configs)
        assert broken.gave_up == "the first 3 all failed with the same error; the next run retries"
    mended, asked = run(tmp_path)
    assert asked == asked_calmly
    assert mended.row() == calm.row()


def test_a_study_goes_on_when_the_first_ones_fail_for_different_reasons(tmp_path):
    first = [c.config for c in run(tmp_path / "calm")[1][:3]]
    causes = dict(
        zip(first, (Status.COMPILE_FAILED, Status.RUN_FAILED, Status.COMPILE_FAILED), strict=True)
    )
    result, asked = run(tmp_path, statuses=lambda config: causes.get(config, Status.OK))
    assert len(asked) > 3
    assert not result.gave_up


def test_that_memory_runs_out_ends_no_study(tmp_path):
    """The others may be smaller: who is not is left out for that reason."""
    _, asked = run(tmp_path, statuses=lambda config: Status.OUT_OF_MEMORY)
    assert len(asked) > 3


def test_checks_that_all_fail_alike_end_the_study_too(tmp_path):
    def broken(config):
        return Status.RUN_TIMEOUT

    evaluators = make_evaluators()
    evaluators[Correctness.INTERPRETED].statuses = broken
    with Journal(tmp_path / "store.jsonl") as store:
        (result,) = Sweep(evaluators=evaluators, journal=store, watch=Watch()).run([STUDY])
    assert 3 <= len(evaluators[Correctness.INTERPRETED].asked) <= 4
    assert result.row() is None
    assert "failed with the same error" in result.gave_up
    mended, asked = run(tmp_path)
    assert asked == []  # the times are known
    assert mended.row() is not None
