"""Answers as data frames: of one study, and of a store with its shards."""

from dataclasses import asdict, replace

import pandas as pd
import pytest
from fake_sweep import FormulaEvaluator, make_evaluators, make_study

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.errors import StoreError
from rpa_tune.families.registry import load_family
from rpa_tune.report.frame import answers_frame, store_frame
from rpa_tune.store import journal
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch


@pytest.fixture
def swept(tmp_path):
    """A store of two studies, in which one config does not fit, and their results."""
    studies = [make_study(), make_study(chip="v5e", name="v5e/fake/decode")]
    unlucky = studies[0].space().configs[-1]
    evaluators = make_evaluators(
        statuses=lambda config: Status.OUT_OF_MEMORY if config == unlucky else Status.OK
    )
    with Journal(tmp_path / "s.jsonl") as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch())
        return tmp_path / "s.jsonl", list(sweep.run(studies))


def test_a_result_is_a_frame_of_all_its_candidates(swept):
    _, (result, _) = swept
    frame = result.to_frame()
    # The heuristic is outside of the axes here.
    assert len(frame) == len({*result.space.configs, result.study.heuristic()})
    answered = frame[frame.fidelity == "simulated"]
    assert list(answered.time_us) == [a.time_us for a in result.answers]
    configs = answered.filter(like="config.").rename(columns=lambda name: name[len("config.") :])
    assert configs.to_dict("records") == [asdict(a.candidate.config) for a in result.answers]
    left = frame[frame.fidelity.isna()]
    assert set(left.status) == {stop.reason for stop in result.stops}
    assert left.time_us.isna().all()
    row = result.row()
    assert frame[frame.is_chosen].time_us.min() == pytest.approx(row.evidence.time_us, abs=1e-3)
    (heuristic,) = frame[frame.is_heuristic].to_dict("records")
    assert heuristic["time_us"] == pytest.approx(row.evidence.heuristic_us, abs=1e-3)
    assert heuristic["speedup"] == 1.0
    assert frame.speedup.max() == pytest.approx(heuristic["time_us"] / frame.time_us.min())
    assert set(frame.name) == {result.study.name}


def test_a_store_is_a_frame_of_its_answers(swept):
    path, results = swept
    frame = store_frame(path)
    assert len(frame) == len(journal.read(path).evaluations)
    best = frame[frame.fidelity == "simulated"].groupby("name").time_us.min()
    for result in results:
        assert best[result.study.name] == result.decision.best.time_us
    assert (frame.status == "ok").any()
    assert frame.loc[frame.time_us.notna(), "bound_by"].eq("hbm").all()
    assert isinstance(frame.time.dtype, pd.DatetimeTZDtype)
    assert frame["config.bkv_sz"].dtype == "Int64"
    assert set(frame["problem.head_dim"]) == {128}


def test_the_last_answer_counts_and_shards_are_read(tmp_path):
    study = make_study()
    first, second = (study.candidate(config) for config in study.space().configs[:2])
    slow = FormulaEvaluator(Fidelity.SIMULATED, scale=3.0)
    with Journal(tmp_path / "s.jsonl") as store:
        store.append(slow.answer(first))
        store.append(FormulaEvaluator(Fidelity.SIMULATED).answer(first))
    with Journal(tmp_path / "s.1-of-2.jsonl") as store:
        store.append(slow.answer(second))
    frame = store_frame(tmp_path / "s.jsonl")
    times = [FormulaEvaluator(Fidelity.SIMULATED).answer(first), slow.answer(second)]
    assert list(frame.time_us) == [answer.time_us for answer in times]


def test_families_have_fields_of_their_own():
    study = make_study()
    mixed = load_family("mixed")
    answer = FormulaEvaluator(Fidelity.SIMULATED).answer(study.candidate(study.heuristic()))
    config = mixed.config_type(
        bq_sz=16, bq_csz=16, bkv_sz=128, bkv_csz=128, num_buffers=2, mxu_sums=0
    )
    other = replace(answer, candidate=replace(answer.candidate, family=mixed, config=config))
    frame = answers_frame([answer, other], {answer.candidate.study: "one"})
    assert frame["config.seqs_per_step"].isna().tolist() == [False, True]
    assert frame["config.mxu_sums"].tolist()[1] == 0
    assert frame.name.tolist()[0] == "one"
    assert pd.isna(frame.name[1])


def test_no_answers_are_an_empty_frame_with_its_columns(tmp_path):
    with Journal(tmp_path / "s.jsonl"):
        pass
    frame = store_frame(tmp_path / "s.jsonl")
    assert frame.empty
    assert {"study", "fidelity", "status", "time_us", "mbu", "time"} <= set(frame)
    with pytest.raises(StoreError, match="no such store"):
        store_frame(tmp_path / "none.jsonl")
