"""How well look-ups are covered, and what the heuristic is known to lose."""

from dataclasses import replace

import pytest
from table_rows import PROBLEM, default_config, make_row

from rpa_tune.dispatch.audit import audit
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.select import Source
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.loss import expected_loss
from rpa_tune.tables.reader import Tables

DOUBLED = replace(PROBLEM, max_num_tokens=2 * PROBLEM.max_num_tokens)


def look_up(*rows, problem=PROBLEM, on_miss="heuristic"):
    dispatcher = Dispatcher(load_chip("v6e"), Tables(rows), on_miss=on_miss)
    (entry,) = audit(dispatcher, [problem], ["decode"])
    return entry


def test_every_problem_is_looked_up_for_every_family() -> None:
    entries = audit(Dispatcher(load_chip("v6e"), Tables([])), [PROBLEM, DOUBLED])
    assert [(e.problem.max_num_tokens, e.family) for e in entries] == [
        (tokens, family) for tokens in (32, 64) for family in ("decode", "prefill", "mixed")
    ]


@pytest.mark.parametrize(
    ("evidence", "loss_pct"),
    # Nothing is known of a row of other kernels, nor of one whose config had no rival.
    [({}, 0.0), ({"kernel_digest": "old"}, None), ({"num_candidates": 1}, None)],
)
def test_an_exact_row_loses_nothing_if_it_is_of_today_and_was_compared(evidence, loss_pct) -> None:
    entry = look_up(make_row(**evidence))
    assert (entry.coverage, entry.distance) == (Source.EXACT, 0.0)
    assert entry.expected_loss_pct == loss_pct
    assert entry.is_stale == ("kernel_digest" in evidence)
    assert entry.is_untested == ("num_candidates" in evidence)


def test_a_row_that_a_study_of_another_shape_filled_may_lose_something() -> None:
    row = make_row()
    filled = replace(row, evidence=replace(row.evidence, problem={"max_num_tokens": 2048}))
    entry = look_up(filled)
    known = expected_loss(row.key, replace(row.key, max_num_tokens=2048), "tuned")
    assert entry.coverage is Source.EXACT
    assert (entry.expected_loss_pct, entry.loss.worst_pct) == (known.pct, known.worst_pct)


def test_a_nearest_row_has_a_distance_and_the_loss_of_neighbours_so_far_away() -> None:
    entry = look_up(make_row(problem=DOUBLED), on_miss="nearest")
    assert entry.coverage is Source.NEAREST
    assert entry.distance > 0
    known = expected_loss(make_row().key, make_row(problem=DOUBLED).key, "tuned")
    assert (entry.loss.pct, entry.loss.worst_pct) == (known.pct, known.worst_pct)
    stale = look_up(make_row(problem=DOUBLED, kernel_digest="old"), on_miss="nearest")
    assert stale.expected_loss_pct is None
    assert "expected loss" not in stale.why
    untested = look_up(make_row(problem=DOUBLED, num_candidates=1), on_miss="nearest")
    assert untested.expected_loss_pct is None
    filled = make_row(problem=DOUBLED)
    timed = replace(filled, evidence=replace(filled.evidence, problem={"max_num_tokens": 2048}))
    entry = look_up(timed, on_miss="nearest")
    assert f"{entry.loss.pct:.1f} %" in entry.why  # one loss, by what the row's study timed
    kept = look_up(make_row(problem=DOUBLED, verdict="heuristic"), on_miss="nearest")
    assert "whose row keeps the heuristic" in kept.loss.where


@pytest.mark.parametrize(
    ("problem", "evidence", "is_known"),
    [
        (DOUBLED, {}, True),
        (replace(PROBLEM, max_num_tokens=4 * PROBLEM.max_num_tokens), {}, False),  # too far
        (replace(DOUBLED, max_num_seqs=2 * PROBLEM.max_num_seqs), {}, True),  # each by a doubling
        (replace(PROBLEM, head_dim=256), {}, False),  # another attention
        (DOUBLED, {"kernel_digest": "old"}, False),
        (DOUBLED, {"heuristic_us": None}, False),
        (DOUBLED, {"heuristic": default_config(num_buffers=2)}, False),  # that of another day
        (DOUBLED, {"heuristic": None}, False),
    ],
)
def test_the_heuristics_loss_is_that_of_a_row_a_doubling_away(problem, evidence, is_known) -> None:
    entry = look_up(make_row(problem=problem, time_us=50.0, **{"heuristic_us": 60.0, **evidence}))
    assert entry.coverage is Source.HEURISTIC
    assert entry.expected_loss_pct == (pytest.approx(20.0) if is_known else None)
    if is_known:
        assert entry.loss.error_pct == 5.0


def test_what_cannot_run_is_an_entry_with_the_limit_whatever_a_miss_does() -> None:
    long = replace(PROBLEM, pages_per_seq=1 << 18, num_pages=1 << 20)
    for on_miss in ("heuristic", "nearest", "error"):
        entry = look_up(problem=long, on_miss=on_miss)
        assert entry.coverage is Source.INFEASIBLE
        assert "smem_bytes" in entry.why
    assert look_up(on_miss="error").coverage is Source.HEURISTIC  # no exception
