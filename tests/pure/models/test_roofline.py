"""What a step costs beside attention, and what a device holds, by arithmetic anyone can redo."""

import dataclasses

import pytest

from rpa_tune.hw.chip import load_chip
from rpa_tune.models.catalog import load_model
from rpa_tune.models.roofline import Roofline, hbm_bytes
from rpa_tune.models.weights import Weights

DENSE = Weights(
    embedding_params=1_000_000, always_params=8_000_000, head_params=1_000_000,
    head_is_embedding=False,
)  # fmt: skip


def roofline(weights=DENSE, chip="v6e", tp=1, **others):
    return Roofline(weights=weights, chip=load_chip(chip), tp=tp, **others)


def test_few_tokens_cost_a_reading_of_the_weights_and_many_the_multiplications():
    bandwidth, peak = 1.64e12, 9.2e14  # chips.yaml: v6e
    assert roofline().step_us(1, 1) == pytest.approx(1e6 * 9e6 * 2 / bandwidth)
    assert roofline().step_us(100_000, 1) == pytest.approx(1e6 * 2 * (8e6 * 1e5 + 1e6) / peak)
    assert roofline(tp=4).step_us(1, 1) == pytest.approx(roofline().step_us(1, 1) / 4)
    assert roofline(weight_dtype="int8").step_us(1, 1) == roofline().step_us(1, 1) / 2


def test_a_device_of_two_cores_has_both_shares():
    one_core = load_chip("v5p").hbm_bytes_per_s
    assert roofline(chip="v5p").step_us(1, 1) == pytest.approx(1e6 * 18e6 / (2 * one_core))
    assert hbm_bytes(load_chip("v5p")) == 2 * load_chip("v5p").value("hbm_bytes")


def test_a_step_of_more_tokens_reads_more_experts():
    moe = dataclasses.replace(DENSE, expert_params=100_000, num_experts=64, experts_per_token=4)
    few, more, all_of_them = (roofline(moe).step_us(n, 1) for n in (1, 8, 1000))
    assert few < more < all_of_them
    read = roofline(moe).weights.touched_params(1000)
    assert read == pytest.approx(9e6 + 64 * 1e5, rel=1e-6)


def test_the_clock_is_that_of_the_workloads_default_for_its_model():
    """`StepTime` says Llama-3-8B in bfloat16 on one v6e: 9,800 us, 17.4 us and 0.08 us."""
    own = Roofline(weights=load_model("llama3-8b").weights, chip=load_chip("v6e"), tp=1)
    assert own.weight_bytes == pytest.approx(16.06e9, rel=0.001)
    clock = own.clock(32 * 8 * 2 * 128 * 2)
    assert clock["weights_us"] == pytest.approx(9800, rel=0.07)  # which has the embeddings in it
    assert clock["us_per_token"] == pytest.approx(17.4, rel=0.13)  # and the head for all tokens
    assert clock["us_per_context_token"] == pytest.approx(0.08, rel=0.01)
