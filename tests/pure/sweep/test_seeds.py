"""Seeds: winners of neighbouring problems, and that a run does not feed on what it writes."""

from dataclasses import asdict, replace

import pytest
from fake_sweep import PROBLEM, FormulaEvaluator, make_evaluators, make_study
from table_rows import make_row

from rpa_kernels.decode.config import DecodeConfig
from rpa_tune.candidate import Fidelity, Status
from rpa_tune.errors import TableError
from rpa_tune.hw.chip import load_chip
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.seeds import (
    MAX_SEEDS,
    Winner,
    nearest_first,
    neighbour_seeds,
    winners_before,
    winners_of_store,
    winners_of_tables,
)
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.key import tuning_key
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.writer import merge_into

FEWER_HEADS = replace(PROBLEM, num_q_heads=4, num_kv_heads=1)
SHORTER = replace(PROBLEM, pages_per_seq=8)
A, B, C, D = (
    DecodeConfig(bkv_sz=n, bkv_csz=128, seqs_per_step=1, num_buffers=2, bq_sz=8)
    for n in (128, 256, 512, 1024)
)


def winner(config, problem=PROBLEM, chip="v6e", family="decode"):
    return Winner(key=tuning_key(problem, chip, family), config=config)


def answers(configs, *, study, time="2026-01-01", fidelity=Fidelity.SIMULATED, **kernel):
    """Answers to a study, by the formula, given at a time and perhaps by another kernel."""
    evaluator = FormulaEvaluator(fidelity)
    for config in configs:
        answer = evaluator.answer(study.candidate(config))
        yield replace(answer, provenance={**answer.provenance, "time": time, **kernel})


def test_the_nearest_problem_leads_then_the_same_chip():
    key = tuning_key(PROBLEM, "v6e", "decode")
    found = nearest_first(
        key,
        [
            winner(A, FEWER_HEADS),
            winner(B, chip="v5e"),
            winner(C),
            winner(D, SHORTER),
            winner(B, FEWER_HEADS),  # again, from farther away
            winner(A, family="mixed"),
            winner(A, replace(PROBLEM, kv_dtype="float8_e4m3fn")),
        ],
    )
    assert found == [C, B, D, A]


def test_only_what_fits_is_a_seed_and_not_too_many():
    study = make_study(problem=replace(PROBLEM, page_size=256, pages_per_seq=8))
    winners = [winner(config) for config in (replace(A, bkv_sz=384), B, C, D)]
    check = study.family.check
    assert check(study.problem, winners[0].config, load_chip("v6e").target) is not None
    assert neighbour_seeds(study, winners) == [B, C][:MAX_SEEDS]


def test_a_store_gives_the_fastest_config_of_every_other_problem():
    study, other = make_study(), make_study(problem=SHORTER)
    known = [*answers([A, D, C, B], study=other), *answers([A, B], study=study)]
    assert [w.config for w in winners_of_store(known, [study])] == [C]  # 512 is best
    assert {w.key for w in winners_of_store(known, [])} == {
        tuning_key(PROBLEM, "v6e", "decode"),
        tuning_key(SHORTER, "v6e", "decode"),
    }


def test_answers_of_an_older_kernel_are_seeds_for_the_same_problem():
    study = make_study()
    old = list(answers([A, D], study=study, time="2025-01-01", kernel="old"))
    older = list(answers([C], study=study, time="2024-01-01", kernel="older"))
    for known in ([*old, *older], [*older, *old]):
        assert [w.config for w in winners_of_store(known, [study])] == [D]
    # What today's kernel answers, be it better, changes nothing: the run itself writes it.
    today = list(answers([B], study=study, time="2026-01-01"))
    assert [w.config for w in winners_of_store([*old, *today], [study])] == [D]


def test_answers_without_time_or_from_the_wrong_rung_win_nothing():
    study = make_study(problem=SHORTER)
    failed = [replace(e, status=Status.CRASHED, time_us=None) for e in answers([C], study=study)]
    bound = list(answers([C], study=study, fidelity=Fidelity.ANALYTICAL))
    assert winners_of_store([*failed, *bound], []) == []
    slow = [replace(e, time_us=1e6) for e in answers([A], study=study, fidelity=Fidelity.MEASURED)]
    known = [*answers([C], study=study), *slow]
    assert [w.config for w in winners_of_store(known, [])] == [A]  # measured beats simulated


def test_the_order_of_a_store_does_not_matter():
    studies = [
        make_study(problem=p, chip=chip) for p in (PROBLEM, SHORTER) for chip in ("v4", "v6e")
    ]
    known = [e for study in studies for e in answers([A, B, C], study=study)]
    assert winners_of_store(known, []) == winners_of_store(known[::-1], [])
    assert len(winners_of_store(known, [])) == 4


def test_tables_give_their_rows_but_not_those_the_run_writes():
    study = make_study()
    own = make_row(problem=PROBLEM, configs=[asdict(A)])
    pair = make_row(problem=SHORTER, configs=[asdict(B), asdict(C)])
    gone = make_row(problem=FEWER_HEADS, configs=[{"bkv_sz": 128, "no_longer": 1}])
    winners = winners_of_tables(Tables([own, pair, gone]), [study])
    assert [(w.key, w.config) for w in winners] == [(pair.key, B), (pair.key, C)]


def test_what_won_before_is_asked_for_after_the_heuristic(tmp_path):
    merge_into(tmp_path / "tables", [make_row(problem=SHORTER, configs=[asdict(D)])])
    study = make_study(simulate=4)
    known = list(answers([A], study=study, time="2025-01-01", kernel="old"))
    winners = winners_before([study], known, [tmp_path / "tables", tmp_path / "none"])
    evaluators = make_evaluators()
    with Journal(tmp_path / "store") as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), winners=winners)
        next(sweep.run([study]))
    asked = [candidate.config for candidate in evaluators[Fidelity.SIMULATED].asked]
    assert asked[:3] == [study.heuristic(), A, D]


def test_a_table_that_does_not_parse_is_an_error_and_not_a_missing_seed(tmp_path):
    (file,) = merge_into(tmp_path, [make_row()])
    file.write_text(file.read_text() + "{\n")
    with pytest.raises(TableError, match="not JSON"):
        winners_before([], [], [tmp_path])


def test_a_resumed_run_starts_from_the_same_seeds(tmp_path):
    """Its own rows and answers are there the second time, and must not count."""
    studies = [make_study(), make_study(problem=SHORTER, name="shorter")]
    tables, path = tmp_path / "tables", tmp_path / "store"

    def run():
        evaluators = make_evaluators()
        with Journal(path) as journal:
            before = winners_before(studies, list(journal.evaluations()), [tables])
            sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), winners=before)
            for result in sweep.run(studies):
                merge_into(tables, [result.row()])
        return before, len(evaluators[Fidelity.SIMULATED].asked)

    neighbour = make_row(problem=FEWER_HEADS, configs=[asdict(C)])
    merge_into(tables, [neighbour])
    first, num_asked = run()
    assert num_asked > 0
    assert [w.key for w in first] == [neighbour.key]
    assert run() == (first, 0)


def test_workloads_of_one_problem_are_questions_of_their_own():
    study = make_study()
    batches = study.workload.batches
    one = replace(study.workload, batches=(replace(batches[0], weight=1.0),))
    other = replace(study, workload=one)
    known = list(answers([B], study=other))
    assert [w.config for w in winners_of_store(known, [study])] == [B]
    assert winners_of_store(known, [study, other]) == []
