"""Selection: exact, nearest, heuristic, and that each says which."""

import itertools
import logging
from dataclasses import replace

import pytest
from table_rows import PROBLEM, default_config, make_row

from rpa_kernels.family import config_to_dict
from rpa_kernels.infeasible import Infeasible
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.dispatch.select import Source, select
from rpa_tune.errors import TableError, UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.row import Clause
from rpa_tune.tables.step import Step
from rpa_tune.tables.writer import merge_into

CHIP = load_chip("v6e")
NEAR = replace(PROBLEM, max_num_seqs=16)
FAR = replace(PROBLEM, num_q_heads=64, num_kv_heads=16, head_dim=256)
TUNED = default_config(seqs_per_step=1, num_buffers=2)
TWO_CONFIGS = make_row(
    configs=[TUNED, default_config()],
    rule=(Clause(use=0, feature="longest_context_tokens", at_most=64), Clause(use=1)),
)

# What is looked up, in which rows -> source and part of the reason. Change with care.
GOLDEN = [
    (PROBLEM, [make_row(configs=[TUNED])], Source.EXACT, "simulated, tuned"),
    (NEAR, [make_row(configs=[TUNED])], Source.NEAREST, "max_num_seqs 8 instead of 16"),
    (NEAR, [make_row(verdict="heuristic")], Source.NEAREST, "heuristic won there"),
    # The default of another day, which gained nothing then.
    (NEAR, [make_row(configs=[TUNED], verdict="heuristic", heuristic_us=50.0)], Source.HEURISTIC,
     "which gained 0.0 % there: expected loss"),
    # A gain that is less than neighbours lose on average; a row farther away is as good as any.
    (NEAR, [make_row(configs=[TUNED], heuristic_us=50.1)], Source.HEURISTIC,
     "none that fits within distance 4 but"),
    (NEAR, [make_row(configs=[TUNED], heuristic_us=50.1),
            make_row(problem=replace(PROBLEM, page_size=32), verdict="heuristic")],
     Source.NEAREST, "heuristic won there"),
    # Nothing to compare with is no reason against it.
    (NEAR, [make_row(configs=[TUNED], heuristic_us=None)], Source.NEAREST, "expected loss"),
    (FAR, [make_row(configs=[TUNED])], Source.HEURISTIC, "none that fits within distance 4"),
    (PROBLEM, [], Source.HEURISTIC, "no row for this key"),
    (PROBLEM, [make_row("mixed")], Source.HEURISTIC, "no row for this key"),
    (PROBLEM, [make_row(chip="v5e")], Source.HEURISTIC, "no row for this key"),
    (PROBLEM, [make_row(configs=[{"bkv_sz": 1}])], Source.HEURISTIC, "missing"),
    (PROBLEM, [make_row(configs=[{**TUNED, "num_buffers": 1}])], Source.HEURISTIC, "num_buffers"),
    (PROBLEM, [make_row(configs=[{**TUNED, "num_buffers": 1}]),
               make_row(problem=NEAR, configs=[TUNED])],
     Source.NEAREST, "max_num_seqs 16 instead of 8"),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "rows", "source", "reason"), GOLDEN)
def test_golden_choices(problem, rows, source, reason):
    choice = select(problem, CHIP.target, "decode", Tables(rows))
    assert choice.source is source
    assert reason in choice.why
    assert choice.why.startswith(str(source))
    is_heuristic = source is Source.HEURISTIC or "heuristic won there" in reason
    expected = default_config(problem=problem) if is_heuristic else TUNED
    assert config_to_dict(choice.configs[0]) == expected


def test_on_miss_decides_what_a_miss_becomes():
    tables = Tables([make_row(configs=[TUNED])])
    choice = select(NEAR, CHIP.target, "decode", tables, on_miss="heuristic")
    assert choice.source is Source.HEURISTIC
    with pytest.raises(TableError, match="no tuned decode config for v6e"):
        select(NEAR, CHIP.target, "decode", tables, on_miss="error")
    assert select(PROBLEM, CHIP.target, "decode", tables, on_miss="error").row is not None


def test_the_nearest_of_several_wins_whatever_their_order():
    rows = [make_row(problem=replace(PROBLEM, max_num_seqs=n), configs=[TUNED]) for n in (64, 16)]
    for order in (rows, rows[::-1]):
        choice = select(PROBLEM, CHIP.target, "decode", Tables(order))
        assert choice.row.key.max_num_seqs == 16


def dispatcher(*rows, **options):
    return Dispatcher(CHIP, Tables(rows), **options)


DECODE = Step.of([1, 1], [10, 20], [2, 2, 2])
BOTH = Step.of([1, 7], [10, 20], [1, 1, 2])
PREFILL = Step.of([4, 4], [10, 20], [0, 2, 2])


def test_only_families_with_sequences_are_launched():
    dispatch = dispatcher()
    assert dispatch.plan(PROBLEM, DECODE).families == ("decode",)
    assert dispatch.plan(PROBLEM, BOTH).families == ("decode", "mixed")
    assert dispatch.plan(PROBLEM, Step.of([7], [9], [0, 0, 1])).families == ("mixed",)
    assert dispatch.plan(PROBLEM, Step()).families == ()


def test_a_used_prefill_slot_is_never_dropped():
    dispatch = dispatcher()
    plan = dispatch.plan(PROBLEM, PREFILL)
    assert plan.unserved((0, 2, 2)) is None
    choices = dispatch.choices(PROBLEM)
    choices.pop("prefill", None)
    without = LaunchPlan(
        problem=PROBLEM, target=CHIP.target,
        launches=(Launch(family="mixed", config=choices["mixed"].configs[0]),),
    )  # fmt: skip
    assert without.unserved((0, 2, 2)) is None
    assert without.effective_distribution(0, 2, 2) == (0, 0, 2)
    assert without.effective_distribution(1, 2, 3) == (0, 0, 3)


def test_a_plan_says_what_it_would_leave_out():
    plan = dispatcher().plan(PROBLEM, DECODE)
    assert plan.unserved((2, 2, 2)) is None
    assert plan.unserved((1, 1, 3)) == "2 mixed"
    assert plan.unserved((1, 3, 4)) == "2 prefill, 1 mixed"
    both = dispatcher().plan(PROBLEM, BOTH)
    assert both.effective_distribution(1, 3, 4) == (1, 1, 4)


@pytest.mark.parametrize("families", [
    one for n in range(4) for one in itertools.combinations(("decode", "prefill", "mixed"), n)
])  # fmt: skip
def test_what_is_not_launched_is_served_by_the_next_that_is(families):
    configs = {name: choice.configs[0] for name, choice in dispatcher().choices(PROBLEM).items()}
    launches = tuple(Launch(family=name, config=configs[name]) for name in families)
    plan = LaunchPlan(problem=PROBLEM, target=CHIP.target, launches=launches)
    left = {"decode": 1, "prefill": 2, "mixed": 3}  # sequences of the batch
    for place, name in enumerate(left):
        if set(families) & set(list(left)[max(place, 1) :]) or name in families:
            left[name] = 0  # it, or a later one that takes any length
    text = ", ".join(f"{count} {name}" for name, count in left.items() if count)
    assert plan.unserved((1, 3, 6)) == (text or None)


def test_a_plan_of_families_out_of_order_or_twice_is_refused():
    config = dispatcher().choices(PROBLEM)["mixed"].configs[0]
    for families in (("mixed", "decode"), ("mixed", "mixed"), ("chunked",)):
        launches = tuple(Launch(family=name, config=config) for name in families)
        with pytest.raises(ValueError, match="in this order"):
            LaunchPlan(problem=PROBLEM, target=CHIP.target, launches=launches)


def test_plans_are_hashable_and_the_same_for_the_same_step():
    one, other = dispatcher(TWO_CONFIGS), dispatcher(TWO_CONFIGS)
    assert one.plan(PROBLEM, BOTH) is one.plan(replace(PROBLEM), BOTH)
    assert one.plan(PROBLEM, BOTH) == other.plan(PROBLEM, BOTH)
    assert hash(one.plan(PROBLEM, BOTH)) == hash(other.plan(PROBLEM, BOTH))
    assert one.plan(PROBLEM, BOTH) != one.plan(PROBLEM, DECODE)


def test_the_reason_is_no_part_of_a_plans_identity():
    tuned = dispatcher(make_row(configs=[default_config()])).plan(PROBLEM, DECODE)
    guessed = dispatcher().plan(PROBLEM, DECODE)
    assert tuned.launches[0].why != guessed.launches[0].why
    assert tuned == guessed


def test_the_rule_of_a_row_picks_by_the_steps_lengths():
    dispatch = dispatcher(TWO_CONFIGS)
    short = dispatch.plan(PROBLEM, Step.of([1], [64], [1, 1, 1]))
    long = dispatch.plan(PROBLEM, Step.of([1], [65], [1, 1, 1]))
    assert config_to_dict(short.launches[0].config) == TUNED
    assert config_to_dict(long.launches[0].config) == default_config()


def test_plans_lists_every_plan_a_step_can_get():
    dispatch = dispatcher(TWO_CONFIGS)
    plans = dispatch.plans(PROBLEM)
    assert len(plans) == len(set(plans))
    steps = [DECODE, BOTH, PREFILL, Step.of([1], [65], [1, 1, 1]),
             Step.of([1, 4, 7], [90, 9, 9], [1, 2, 3])]  # fmt: skip
    for step in steps:
        assert dispatch.plan(PROBLEM, step) in plans


def test_each_key_is_logged_once_and_misses_are_warnings(caplog):
    dispatch = dispatcher(make_row(configs=[TUNED]))
    with caplog.at_level(logging.INFO, "rpa_tune.dispatch"):
        for _ in range(3):
            dispatch.plan(PROBLEM, DECODE)
    lines = {record.args[0]: record for record in caplog.records}
    assert len(caplog.records) == len(lines)
    assert lines["decode"].levelno == logging.INFO
    assert lines["mixed"].levelno == logging.WARNING
    assert "heuristic: no row" in lines["mixed"].getMessage()


def test_a_family_that_cannot_serve_leaves_its_sequences_to_mixed(monkeypatch):
    from rpa_tune.dispatch import dispatcher as module

    blocked = Infeasible(limit="made up", need=2, have=1, unit="")
    real = module.select

    def refuse_decode(problem, target, family, tables, *, on_miss):
        if family == "decode":
            return blocked
        return real(problem, target, family, tables, on_miss=on_miss)

    monkeypatch.setattr(module, "select", refuse_decode)
    plan = dispatcher().plan(PROBLEM, Step.of([1, 4, 7], [9, 9, 9], [1, 2, 3]))
    assert plan.families == ("mixed",)
    assert plan.unserved((1, 2, 3)) is None
    monkeypatch.setattr(module, "select", lambda *a, **k: blocked)
    with pytest.raises(ValueError, match="no kernel can serve"):
        dispatcher().plan(PROBLEM, DECODE)


def test_launch_order_is_enforced():
    launches = dispatcher().plan(PROBLEM, BOTH).launches
    for bad in (launches[::-1], launches[:1] * 2):
        with pytest.raises(ValueError, match="order"):
            LaunchPlan(problem=PROBLEM, target=CHIP.target, launches=bad)


def test_loading_lays_folders_over_the_shipped_tables(tmp_path):
    odd = replace(PROBLEM, num_q_heads=24, num_kv_heads=3)
    assert load_dispatcher("v6e").choices(odd)["decode"].source is not Source.EXACT
    merge_into(tmp_path, [make_row(problem=odd)])
    for tables in (tmp_path, str(tmp_path), [tmp_path]):
        loaded = load_dispatcher("v6e", tables)
        assert loaded.choices(odd)["decode"].source is Source.EXACT
    assert load_dispatcher("v6e", Tables()).tables.exact(make_row().key) is None


def test_bad_arguments_are_usage_errors():
    with pytest.raises(UsageError, match="did you mean v6e"):
        load_dispatcher("v6")
    with pytest.raises(UsageError, match="on_miss"):
        load_dispatcher("v6e", on_miss="guess")
    with pytest.raises(UsageError, match="not a TPU"):
        load_dispatcher()
