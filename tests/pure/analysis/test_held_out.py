"""Rows that are hidden: what stands in for them, and what that loses by the hidden row's study."""

from dataclasses import replace

import pytest
from table_rows import PROBLEM, default_config, timed_row

from rpa_tune.analysis.held_out import NUM_PARTS, _part, _shape, held_out_text, hold_out, worst
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.dispatch.select import Source
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.key import tuning_key
from rpa_tune.tables.reader import Tables

FAST = default_config(seqs_per_step=1, num_buffers=2)
OTHER = default_config(seqs_per_step=2, num_buffers=2)


def two_shapes():
    """A problem, and one with other heads whose rows are hidden at another time."""
    first = _part(_shape(tuning_key(PROBLEM, "v6e", "decode")))
    for heads in (16, 4, 12, 24):
        other = replace(PROBLEM, num_q_heads=heads)
        if _part(_shape(tuning_key(other, "v6e", "decode"))) != first:
            return PROBLEM, other
    raise AssertionError(f"all of {NUM_PARTS} parts alike")


HERE, THERE = two_shapes()


def row(problem, config, **evidence):
    return timed_row("decode", problem, configs=[config], **evidence)


def test_the_loss_is_what_the_hidden_rows_own_study_says_of_the_answer() -> None:
    runner_up = {"config": OTHER, "time_us": 52.0}
    rows = [row(HERE, FAST, time_us=50.0, runners_up=(runner_up,)), row(THERE, OTHER, time_us=10.0)]
    found = hold_out(Tables(rows), "v6e")
    losses = {hidden.row.key.num_q_heads: hidden.loss_pct for hidden in found.rows}
    assert losses[HERE.num_q_heads] == pytest.approx(4.0)  # THERE's config, a runner-up of HERE
    assert losses[THERE.num_q_heads] is None  # HERE's config was never timed there
    assert found.to_dict()["nearest"] == {
        "rows": 2, "untimed": 1, "mean_loss_pct": pytest.approx(4.0),
        "worst_loss_pct": pytest.approx(4.0),
    }  # fmt: skip
    assert found.num_shapes == 2
    assert "1 nearest: mean loss 4.00 %, worst 4.00 %; 1 more that" in "\n".join(
        held_out_text(found)
    )
    assert [hidden.row.key for hidden in worst(found)] == [rows[0].key]


def test_a_store_says_what_the_evidence_does_not() -> None:
    rows = [row(HERE, FAST), row(THERE, OTHER, time_us=10.0, heuristic_us=20.0)]
    family = load_family("decode")
    candidate = Candidate(
        family=family, problem=THERE, config=family.config_from_dict(FAST), chip=load_chip("v6e"),
        workload="0" * 16,
    )  # fmt: skip
    answer = Evaluation(
        candidate=candidate, fidelity=Fidelity.SIMULATED, status=Status.OK, time_us=11.5
    )
    of_another_workload = replace(answer, candidate=replace(candidate, workload="1" * 16))
    for answers, expected in (([answer], 15.0), ([of_another_workload], None)):
        found = hold_out(Tables(rows), "v6e", answers)
        (hidden,) = (h for h in found.rows if h.row.key == rows[1].key)
        assert hidden.loss_pct == (expected and pytest.approx(expected))


def test_without_a_neighbour_the_heuristic_answers_and_all_rows_of_a_shape_go_together() -> None:
    wider = replace(HERE, max_num_seqs=16)
    rows = [row(HERE, FAST, time_us=50.0, heuristic_us=60.0), row(wider, FAST, time_us=50.0)]
    found = hold_out(Tables(rows), "v6e")
    assert {hidden.source for hidden in found.rows} == {Source.HEURISTIC}
    assert found.rows[0].loss_pct == pytest.approx(20.0)


def test_rows_of_other_kernels_and_filled_ones_are_not_looked_up() -> None:
    stale = row(HERE, FAST, kernel_digest="0" * 16)
    filled = replace(HERE, max_num_tokens=2 * HERE.max_num_tokens)
    timed = row(HERE, FAST)
    beyond = timed.evidence.problem | {"max_num_tokens": HERE.max_num_tokens}
    of_fill = replace(
        timed,
        key=tuning_key(filled, "v6e", "decode"),
        evidence=replace(timed.evidence, problem=beyond),
    )
    for rows in ([stale], [of_fill]):
        assert hold_out(Tables(rows), "v6e").rows == ()
    assert "no row of this chip" in held_out_text(hold_out(Tables([stale]), "v6e"))[0]
