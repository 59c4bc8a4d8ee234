"""One rule for the shapes of a server, followed by all code that makes or meets a row."""

from dataclasses import replace

import pytest
from table_rows import PROBLEM

from rpa_kernels.batch import Batch
from rpa_tune.models.buckets import Engine
from rpa_tune.models.catalog import load_model, problem_for
from rpa_tune.tables.key import tuning_key
from rpa_tune.workload.workload import WeightedBatch, Workload


def workload(num_tokens, num_seqs):
    q_lens = (1,) * (num_seqs - 1) + (num_tokens - num_seqs + 1,)
    batch = Batch(q_lens=q_lens, kv_lens=q_lens, num_decode=num_seqs - 1)
    return Workload(name="one", source="made up", batches=(WeightedBatch(batch=batch, weight=1.0),))


def test_tokens_start_at_16_and_end_with_the_budget():
    """Right values: `build_token_paddings(16, n, 0)` of tpu-inference 0.32.0."""
    for budget, expected in {
        1: [16], 16: [16], 17: [16, 32], 100: [16, 32, 64, 112],
        1000: [16, 32, 64, 128, 256, 512, 1008],
        8192: [16 << i for i in range(10)],
    }.items():  # fmt: skip
        found = Engine(max_num_seqs=min(64, budget), max_num_batched_tokens=budget).shapes()
        assert [shape.num_tokens for shape in found] == expected


def test_sequences_are_the_most_and_at_least_8():
    """Right value: `max_num_reqs` of tpu-inference 0.32.0."""
    for most, expected in {1: 8, 8: 8, 20: 20}.items():
        engine = Engine(max_num_seqs=most, max_num_batched_tokens=32)
        assert {shape.num_seqs for shape in engine.shapes()} == {expected}


@pytest.mark.parametrize("num_tokens", [1, 2, 8, 9, 16, 17, 100, 1024])
@pytest.mark.parametrize("num_seqs", [1, 8])
def test_a_row_for_a_workload_can_be_met(num_tokens, num_seqs):
    """What a sweep tunes for is a shape of a server with such limits: same key, whatever the size.

    A workload of 8 tokens became a row for 8 tokens, which no server looks up.
    """
    num_seqs = min(num_seqs, num_tokens)
    swept = problem_for(
        load_model("llama3-8b"), workload=workload(num_tokens, num_seqs), page_size=128
    )
    engine = Engine(max_num_seqs=num_seqs, max_num_batched_tokens=num_tokens)
    met = {
        (key.max_num_tokens, key.max_num_seqs)
        for bucket in engine.buckets(PROBLEM)
        if (key := tuning_key(bucket.problem, "v6e", "decode"))
    }
    key = tuning_key(swept, "v6e", "decode")
    assert (key.max_num_tokens, key.max_num_seqs) in met


def test_decodes_of_a_few_tokens_reach_larger_buckets():
    """16 sequences have 64 tokens at most if each has 4, and 16 if each has one."""
    engine = Engine(max_num_seqs=16, max_num_batched_tokens=128)
    for size, most in ((1, 16), (3, 64), (4, 64)):
        problem = replace(PROBLEM, decode_query_size=size)
        met = [b.problem.max_num_tokens for b in engine.buckets(problem) if b.can_meet(("decode",))]
        assert max(met) == most


def test_every_step_is_padded_to_one_shape():
    limits = Engine(
        max_num_seqs=20, max_num_batched_tokens=48, max_model_len=1024, bucket_seqs=True
    )
    for num_seqs in range(1, 21):
        for num_tokens in range(num_seqs, 49):
            assert sum(shape.holds(num_tokens, num_seqs) for shape in limits.shapes()) == 1


def test_only_some_shapes():
    limits = Engine(
        max_num_seqs=8, max_num_batched_tokens=64, max_model_len=1024, only_tokens=(16, 64)
    )
    assert [shape.num_tokens for shape in limits.shapes()] == [16, 64]
