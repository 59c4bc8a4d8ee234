"""What a serving engine can meet: its shapes, and the mixes of families that land in each."""

import itertools
import logging
from dataclasses import replace

import pytest
from table_rows import PROBLEM, default_config, make_row

from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.buckets import Engine
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.row import Clause
from rpa_tune.tables.step import Step

CHIP = load_chip("v6e")


def shapes(**limits):
    buckets = Engine(**limits).buckets(PROBLEM)
    return [(b.problem.max_num_tokens, b.problem.max_num_seqs) for b in buckets]


def test_tokens_double_and_sequences_are_padded_to_the_most():
    assert shapes(max_num_seqs=20, max_num_batched_tokens=48) == [(16, 20), (32, 20), (48, 20)]
    assert shapes(max_num_seqs=2, max_num_batched_tokens=17) == [(16, 8), (32, 8)]


def test_sequences_double_too_when_bucketed():
    found = shapes(max_num_seqs=20, max_num_batched_tokens=32, bucket_seqs=True)
    # More than 16 sequences have more than 16 tokens.
    assert found == [(16, 8), (32, 8), (16, 16), (32, 16), (32, 20)]


@pytest.mark.parametrize("limits", [(0, 8), (8, 0)])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(UsageError, match="must be at least 1"):
        Engine(max_num_seqs=limits[0], max_num_batched_tokens=limits[1])


def landing(problem, engine, num_decode, mixed_lens):
    """The shape a step is padded to, worked out as a server does."""
    num_seqs, num_tokens = num_decode + len(mixed_lens), num_decode + sum(mixed_lens)
    fitting = [
        b.problem
        for b in engine.buckets(problem)
        if b.problem.max_num_seqs >= num_seqs and b.problem.max_num_tokens >= num_tokens
    ]
    return min(fitting, key=lambda p: (p.max_num_seqs, p.max_num_tokens))


@pytest.mark.parametrize("bucket_seqs", [False, True])
def test_warm_up_covers_every_step_and_little_else(bucket_seqs):
    """Every step of a small server by brute force: its plan is listed, and the listed are met."""
    rows = [
        make_row(
            problem=replace(PROBLEM, max_num_seqs=seqs, max_num_tokens=tokens),
            configs=[default_config(seqs_per_step=1), default_config()],
            rule=(Clause(use=0, feature="longest_context_tokens", at_most=64), Clause(use=1)),
        )
        for seqs, tokens in itertools.product((8, 16, 32), (16, 32, 64))
    ]
    dispatcher = Dispatcher(CHIP, Tables(rows))
    engine = Engine(max_num_seqs=20, max_num_batched_tokens=48, bucket_seqs=bucket_seqs)
    plans = dispatcher.plans(PROBLEM, engine)
    assert len(plans) == len(set(plans))
    met = set()
    for num_decode, num_mixed, context in itertools.product(range(21), (0, 1, 2, 9, 17), (40, 200)):
        for mixed_tokens in range(num_mixed, 49 - num_decode):
            if not 1 <= num_decode + num_mixed <= 20 or (mixed_tokens > 0) != (num_mixed > 0):
                continue
            lens = [1] * (num_mixed - 1) + [mixed_tokens - num_mixed + 1] if num_mixed else []
            n = num_decode + num_mixed
            step = Step.of([1] * num_decode + lens, [context] * n, [num_decode, num_decode, n])
            met.add(dispatcher.plan(landing(PROBLEM, engine, num_decode, lens), step))
    assert met == set(plans)


def test_prefill_is_listed_for_engines_that_use_it():
    dispatcher = Dispatcher(CHIP, Tables())
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 16}
    without = dispatcher.plans(PROBLEM, Engine(**limits))
    using = dispatcher.plans(PROBLEM, Engine(**limits, uses_prefill=True))
    assert not any("prefill" in plan.families for plan in without)
    assert any("prefill" in plan.families for plan in using)
    assert set(without) < set(using)


def test_problems_that_share_a_key_are_logged_once(caplog):
    dispatcher = Dispatcher(CHIP, Tables())
    with caplog.at_level(logging.INFO, "rpa_tune.dispatch"):
        for num_pages in (128, 256):
            dispatcher.choices(replace(PROBLEM, num_pages=num_pages))
    assert len(caplog.records) == 3  # one for each family
    assert {r.args[0] for r in caplog.records} == {"decode", "prefill", "mixed"}
