"""What tokamax's kernel is told: block sizes, what it refuses, what it chooses itself. No jax."""

from typing import Any

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.interop.public import batched
from rpa_tune.interop.public.batched import BatchedConfig, check_blocks, check_multiple
from rpa_tune.interop.public.family import check_features, refusal
from rpa_tune.interop.public.tokamax.package import CHIPS, PACKAGE

# What the operator runs with, whatever the shapes, on a chip or for shapes of which its table knows
# nothing; the table's keys are whole calls, and all have a scale of 1 for the logits.
# Source: `_get_heuristics_config` and `_fwd` of its operator.
_OWN_CHOICE = {
    "decode": BatchedConfig(bq_sz=1, bq_c_sz=1, bkv_sz=512, batch_size=8, n_buffer=3),
    "mixed": BatchedConfig(bq_sz=128, bq_c_sz=64, bkv_sz=512, batch_size=2, n_buffer=3),
}
_KV_STEP = 128  # tokens: `bkv_sz` of the operator's Config is a multiple
_MOST_BUFFERS = 4
_QUERY_STEP = 16  # tokens, of prefill blocks


def check(case: str, problem: Problem, config: BatchedConfig, target: Target) -> Infeasible | None:
    """None when the kernel takes these blocks, else the limit they break.

    Args:
      case: `decode` or `mixed`.
      problem: Static shapes.
      config: The blocks.
      target: What the chip can do.
    """
    bad = _check_call(problem, target) or check_blocks(problem, config, target)
    if bad is None and config.n_buffer > _MOST_BUFFERS:
        bad = Infeasible(limit="n_buffer", need=config.n_buffer, have=_MOST_BUFFERS, unit="buffers")
    steps = [("bkv_sz", config.bkv_sz, _KV_STEP)]
    if case == "mixed":
        steps += [
            ("bq_sz", config.bq_sz, _QUERY_STEP), ("bq_c_sz", config.bq_c_sz, _QUERY_STEP),
        ]  # fmt: skip
    for name, value, step in steps:
        bad = bad or check_multiple(f"{name} % {step}", value, step)
    if bad is None and case == "decode" and (config.bq_sz, config.bq_c_sz) != (1, 1):
        bad = refusal("bq_sz", "decode blocks of the operator have one query token")
    return bad


def own_choice(case: str, problem: Problem, target: Target) -> BatchedConfig | Infeasible:
    """The blocks that the operator chooses for itself; it may refuse them when it is called."""
    if bad := _check_call(problem, target):
        return bad
    if reason := PACKAGE.unavailable:
        return refusal("jax", reason)
    return _OWN_CHOICE[case]


def mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """What to try for everything else: more than the operator's own autotuning does."""
    del target
    return batched.mixed_axes(problem, (16, 32, 64, 128, 256))


def kernel_name(letter: str, problem: Problem, config: Any) -> str:
    """Name of the Pallas call of a case: `d` or `m`. Source: `get_kernel_name` in kernel.py."""
    blocks = f"b{config.batch_size}-q{config.bq_sz}-k{config.bkv_sz}"
    window = "" if problem.sliding_window is None else f"-sw{problem.sliding_window}"
    return f"RPA{letter}-nhs-p{problem.page_size}-{blocks}{window}"


def _check_call(problem: Problem, target: Target) -> Infeasible | None:
    """What no block sizes can mend. Source: the function's own input checks."""
    if target.chip not in CHIPS:
        return refusal("chip", f"tokamax's kernel knows {', '.join(CHIPS)}")
    if problem.has_sinks:
        return refusal("sinks", "tokamax's kernel has no attention sinks")
    if problem.kv_dtype == "int8":
        return refusal("kv_dtype int8", "the kernel takes floating-point caches only")
    return check_features(problem)
