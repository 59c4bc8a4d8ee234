"""A public schedule that drops work is no answer."""

import importlib.metadata
from dataclasses import dataclass, replace

import pytest
from table_rows import PROBLEM

from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Candidate
from rpa_tune.evaluate.simulate_task import find_mismatch
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.family import least_cached_bytes
from rpa_tune.interop.public.tpu_inference.families import TPU_INFERENCE
from rpa_tune.interop.public.tpu_inference.package import why_untraceable

BATCH = Batch(q_lens=(1, 1, 5), kv_lens=(101, 51, 25), num_decode=2)
TOKEN_BYTES = 2 * 2 * 128 * 2  # K and V, 2 heads of 128, bfloat16


@dataclass
class Line:
    read_bytes: int
    write_bytes: int = 0
    num_copies: int = 0
    mxu_busy_cycles: float = 0.0


def candidate(name):
    family = TPU_INFERENCE[name]
    values = dict.fromkeys(family.config_type.__dataclass_fields__, 1)
    config = family.config_type(**values)
    return Candidate(
        family=family, problem=PROBLEM, config=config, chip=load_chip("v6e"), workload=""
    )


def test_least_bytes_are_those_of_the_sequences_that_the_call_serves():
    assert least_cached_bytes(PROBLEM, BATCH, ("decode",)) == 150 * TOKEN_BYTES
    assert least_cached_bytes(PROBLEM, BATCH, ("prefill", "mixed")) == 20 * TOKEN_BYTES


def test_a_schedule_that_reads_too_little_is_not_understood():
    decode = candidate("public-batched-decode")
    enough, short = Line(150 * TOKEN_BYTES), Line(150 * TOKEN_BYTES - 1)
    assert find_mismatch(decode, (BATCH,), (enough,)) == ""
    assert "schedule is too short" in find_mismatch(decode, (BATCH, BATCH), (enough, short))
    assert find_mismatch(candidate("public-batched-mixed"), (BATCH,), (short,)) == ""


@pytest.mark.parametrize(
    ("kernel", "jax", "traces"),
    [("stacked", "0.10.2", True), ("stacked", "0.12.0.1", False), ("stacked", "1.0", False),
     ("batched", "0.12.0.1", True)],
)  # fmt: skip
def test_a_kernel_that_this_jax_does_not_trace_says_so(monkeypatch, kernel, jax, traces):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: jax)
    assert (why_untraceable(kernel) == "") is traces
    if not traces:
        name = f"public-{kernel}-decode"
        problem = replace(PROBLEM, page_size=128)
        refused = TPU_INFERENCE[name].default_config(problem, load_chip("v6e").target)
        assert isinstance(refused, Infeasible)
        assert f"does not trace under jax {jax}" in str(refused)
