"""Launches on two cores: right, without a race between the cores, and a race is found."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import (
    DECODE_BATCH,
    MIXED_BATCH,
    PREFILL_BATCH,
    V5E,
    blockwise_config,
    decode_config,
    make_problem,
    make_target,
)

from rpa_kernels import calls, load_family
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise import launch as blockwise_launch
from rpa_kernels.decode import launch as decode_launch
from rpa_kernels.verify import draw_operands, run_interpreted, verify

V5P = make_target(chip="v5p", mxu_size=128, num_cores=2, has_bf16_vector_units=False)
V4 = dataclasses.replace(V5P, chip="v4", has_fp8_mxu=False)
BATCHES = {"decode": DECODE_BATCH, "mixed": MIXED_BATCH, "prefill": PREFILL_BATCH}
CONFIGS = {"decode": decode_config(), "mixed": blockwise_config(), "prefill": blockwise_config()}
# By default prefill rests on mixed, whose kernel is the same.
USUAL = ["decode", "mixed", pytest.param("prefill", marks=pytest.mark.slow)]
# One sequence whose query blocks start in the middle of a page, and of a KV block.
ONE_SEQUENCE = {
    "mixed": Batch(q_lens=(45,), kv_lens=(181,), num_decode=0),
    "prefill": Batch(q_lens=(45,), kv_lens=(181,), num_decode=0, num_prefill=1),
}
CASES = {
    "window_sinks": {"sliding_window": 40, "has_sinks": True},
    "fp8": {"kv_dtype": "float8_e4m3fn", "num_q_heads": 6, "num_kv_heads": 3},
    "fused_not_causal": {"head_dim": 64, "causal": False},
}


# Prefill and mixed are one kernel.
FAMILIES = ["decode", "mixed", pytest.param("prefill", marks=pytest.mark.slow)]
MODES = ["on_wait", pytest.param("eager", marks=pytest.mark.slow)]


def share(family, batch, config, problem):
    """Where the cores' shares start and end."""
    split = load_family(family).partition(problem, config, batch.arrays(problem), 2)
    return split.reshape(3, -1).tolist()


def check(family, batch, *, problem=None, target=V5P, **kwargs):
    return verify(
        load_family(family), problem or make_problem(), CONFIGS[family], batch, target=target,
        **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("dma_mode", MODES)
@pytest.mark.parametrize("family", USUAL)
def test_two_cores_are_right(family, dma_mode):
    report = check(family, BATCHES[family], dma_mode=dma_mode)
    assert report.ok, report.problems


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=n, marks=() if n == "fp8" else pytest.mark.slow) for n, c in CASES.items()],
)
@pytest.mark.parametrize("family", ["decode", pytest.param("mixed", marks=pytest.mark.slow)])
def test_two_cores_are_right_with_every_feature(family, case):
    report = check(family, BATCHES[family], problem=make_problem(**case), target=V4)
    assert report.ok, report.problems


@pytest.mark.parametrize("dma_mode", MODES)
@pytest.mark.parametrize("family", ONE_SEQUENCE)
def test_a_sequence_that_both_cores_serve(family, dma_mode):
    batch = ONE_SEQUENCE[family]
    start, cut, end = share(family, batch, CONFIGS[family], make_problem())
    assert start == [0, 0]
    assert cut in ([0, 1], [0, 2])
    assert end == [1, 0]
    report = check(family, batch, dma_mode=dma_mode)
    assert report.ok, report.problems


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_core_without_work(family):
    batch = Batch(q_lens=(1,), kv_lens=(100,), num_decode=family == "decode",
                  num_prefill=family == "prefill")  # fmt: skip
    if family == "decode":
        assert share(family, batch, CONFIGS[family], make_problem()) == [[0], [1], [1]]
    assert check(family, batch).ok
    none = Batch(q_lens=(), kv_lens=(), num_decode=0)
    assert check(family, none).ok


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decode", "mixed", "prefill"])
def test_two_cores_write_what_one_does(family):
    problem, batch = make_problem(), BATCHES[family]
    operands = draw_operands(problem, batch)
    one, two = (
        run_interpreted(
            load_family(family), problem, CONFIGS[family], target, operands,
            interpret=calls.pltpu.InterpretParams(num_cores_or_threads=target.num_cores),
        )
        for target in (V5E, V5P)
    )  # fmt: skip
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def with_partition(monkeypatch, family, starts_and_ends):
    """Gives the family's launches another division."""
    module = decode_launch if family == "decode" else blockwise_launch
    launch = module.launch if family == "decode" else module.LAUNCHES[family]
    other = dataclasses.replace(
        launch, partition=lambda *_: jnp.asarray(starts_and_ends, jnp.int32).reshape(-1)
    )
    if family == "decode":
        monkeypatch.setattr(module, "launch", other)
    else:
        monkeypatch.setitem(module.LAUNCHES, family, other)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_any_division_is_right(monkeypatch, family):
    seqs = list(BATCHES[family].family_seqs(family))
    first, end = seqs[0], seqs[-1] + 1
    places = [[s] if family == "decode" else [s, 0] for s in (first, end, end)]
    for cut in range(first, end):
        places[1][0] = cut
        with_partition(monkeypatch, family, places)
        report = check(family, BATCHES[family])
        assert report.ok, (cut, report.problems)


@pytest.mark.parametrize("family", USUAL)
def test_work_that_both_cores_do_is_a_race(monkeypatch, family):
    # Core 0 serves everything, core 1 the last sequence again: its output is written twice.
    seqs = list(BATCHES[family].family_seqs(family))
    _overlap(monkeypatch, family, seqs[0], seqs[-1], seqs[-1] + 1)
    report = check(family, BATCHES[family])
    assert report.has_race


def _overlap(monkeypatch, family, first, again, end):
    """Lets core 0 serve [first, end) and core 1 [again, end)."""
    width = 1 if family == "decode" else 2
    real = calls._name_refs

    def name_refs(refs, problem, num_cores):
        named = real(refs, problem, num_cores)
        core = calls.pl.program_id(0)
        start = jnp.where(core == 0, first, again)
        core_range = ((start, *[0] * (width - 1)), (jnp.int32(end), *[0] * (width - 1)))
        return dataclasses.replace(named, core_range=core_range)

    monkeypatch.setattr(calls, "_name_refs", name_refs)
