"""The block sizes that a public function chooses itself, asked of the function."""

from dataclasses import asdict
from typing import Any

import jax.numpy as jnp

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference import functions
from rpa_tune.interop.public.tpu_inference.package import WHEEL


def block_sizes(
    kernel: str, is_decode: bool, problem: Problem, target: Target
) -> dict[str, int] | Infeasible:
    """The block sizes that a public function chooses when it is given none.

    Args:
      kernel: `v3`, `hd64`, `batched`, `stacked` or `mla`.
      is_decode: For decode sequences, or for all others; hd64 has one choice for both.
      problem: Static shapes.
      target: What the chip can do.

    Returns:
      Fields of the family's config; the function may refuse them as arguments. An `Infeasible`
      when the function finds none.
    """
    chip = load_chip(target.chip)
    module = WHEEL.load(WHEEL.root, functions.MODULES[kernel])
    with functions.pretend(chip, module):
        try:
            fields = _CHOOSERS[kernel](is_decode, problem, target)
        except ValueError as error:  # the function's own refusal
            return Infeasible(limit="blocks", need=1, have=0, unit="", hint=str(error))
    return {name: int(value) for name, value in fields.items()}


def _choose_v3(is_decode: bool, problem: Problem, target: Target) -> dict[str, int]:
    del target
    module: Any = WHEEL.load(WHEEL.root, functions.MODULES["v3"])
    case = module.RpaCase.DECODE if is_decode else module.RpaCase.MIXED
    sizes: dict[str, int] = module.get_default_block_sizes(
        *_shape_arguments(problem, problem.padded_head_dim),
        problem.max_num_tokens,
        problem.max_num_seqs,
        problem.pages_per_seq,
        case=case,
    )
    # With few tokens the look-up's compute block is larger than its query block. The kernel then
    # runs with the smaller one, and refuses the larger one as an argument.
    # Source: `actual_bq_csz` in v3/kernel.py.
    return {**sizes, "bq_csz": min(sizes["bq_csz"], sizes["bq_sz"])}


def _choose_hd64(is_decode: bool, problem: Problem, target: Target) -> dict[str, int]:
    del is_decode
    pages, queries = functions.choose_hd64(WHEEL.root, load_chip(target.chip), problem)
    return {"bq_sz": queries, "bkv_sz": pages * problem.page_size}


def _choose_batched(is_decode: bool, problem: Problem, target: Target) -> dict[str, int]:
    """Both experimental kernels keep model and serving shapes in two records."""
    package = functions.MODULES["batched"].rsplit(".", 1)[0]
    model, serve = _records(package, problem)
    tuned: Any = WHEEL.load(WHEEL.root, f"{package}.tuned_params")
    case = "decode" if is_decode else "prefill"
    return asdict(tuned.get_tuned_params(model, serve, target.vmem_bytes, case=case))


def _choose_stacked(is_decode: bool, problem: Problem, target: Target) -> dict[str, int]:
    package = functions.MODULES["stacked"].rsplit(".", 1)[0]
    model, serve = _records(package, problem)
    if not is_decode:
        prefill: Any = WHEEL.load(WHEEL.root, f"{package}.prefill.block_sizes")
        return asdict(prefill.choose_block_sizes(model, serve, target.vmem_bytes))
    decode: Any = WHEEL.load(WHEEL.root, f"{package}.decode.block_sizes")
    has_window = problem.sliding_window is not None
    kind = "sliding_window" if has_window else "non_sliding_window"
    sizes = getattr(decode, f"choose_{kind}_block_sizes")(model, serve, target.vmem_bytes)
    return {**asdict(sizes), "bq_c_sz": sizes.bq_sz}


def _choose_mla(is_decode: bool, problem: Problem, target: Target) -> dict[str, int]:
    del target
    return functions.choose_mla(WHEEL.root, problem)["decode" if is_decode else "mixed"]


_CHOOSERS = {
    "v3": _choose_v3,
    "hd64": _choose_hd64,
    "batched": _choose_batched,
    "stacked": _choose_stacked,
    "mla": _choose_mla,
}


def _shape_arguments(problem: Problem, head_dim: int) -> tuple[Any, ...]:
    """What the look-up functions of v3 and hd64 begin with."""
    return (
        jnp.dtype(problem.q_dtype),
        jnp.dtype(problem.kv_dtype),
        problem.num_q_heads,
        problem.num_kv_heads,
        head_dim,
        problem.page_size,
    )


def _records(package: str, problem: Problem) -> tuple[Any, Any]:
    """(model record, serving record) of a package, as its wrapper makes them."""
    configs: Any = WHEEL.load(WHEEL.root, f"{package}.configs")
    out_dtype = jnp.dtype(problem.q_dtype)
    model = configs.ModelConfigs(
        num_q_heads=problem.num_q_heads,
        num_kv_heads=problem.num_kv_heads,
        head_dim=problem.head_dim,
        mask_value=0.0,  # plays no part in the choice
        sm_scale=problem.sm_scale,
        soft_cap=problem.soft_cap,
        sliding_window=problem.sliding_window,
    )
    serve = configs.ServingConfigs(
        num_seqs=problem.max_num_seqs,
        page_size=problem.page_size,
        total_q_tokens=problem.max_num_tokens,
        num_page_indices=problem.max_num_seqs * problem.pages_per_seq,
        dtype_q=jnp.dtype(problem.q_dtype),
        dtype_kv=jnp.dtype(problem.kv_dtype),
        dtype_out=out_dtype,
        scale_q=problem.q_scale,
        scale_k=problem.k_scale,
        scale_v=problem.v_scale,
    )
    return model, serve
