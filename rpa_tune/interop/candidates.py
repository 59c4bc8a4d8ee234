"""Public kernels in the ordinary sweep: their own choice of blocks, their compile, their scalars.

Neighbours: `public_kernels.py` is the half that needs neither jax nor the wheel;
`evaluate/simulate_task.py` calls this one in a worker when a candidate's family is public.
"""

import functools
from dataclasses import asdict, replace
from typing import Any

import jax.numpy as jnp

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import Compiled
from rpa_tune.compile.lower import Call, compile_call
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import tpu_inference, wheel
from rpa_tune.interop.operands import Operands, kept_calls
from rpa_tune.public_kernels import PUBLIC_FAMILIES, PublicFamily

_IDLE_BKV_TOKENS, _IDLE_BQ_TOKENS = 256, 16  # blocks of the case that is not tuned: small


def default_config(family: PublicFamily, problem: Problem, target: Target) -> Any | Infeasible:
    """The block sizes that the public function chooses when it is given none.

    Returns:
      A config; it may be one that the function would refuse as an argument. An `Infeasible` when
      the function finds none.
    """
    chip = load_chip(target.chip)
    module = wheel.load_module(wheel.current_root(), tpu_inference.MODULES[family.kernel])
    with tpu_inference.pretend(chip, module):
        try:
            fields = _CHOOSERS[family.kernel](family, problem, target)
        except ValueError as error:  # the function's own refusal
            return Infeasible(limit="blocks", need=1, have=0, unit="", hint=str(error))
    return family.config_type(**{name: int(value) for name, value in fields.items()})


def compile_public(candidate: Candidate) -> Compiled:
    """Compiles the whole public function, and finds the schedule of the family's call.

    Raises:
      DumpError: The schedule is missing.
      Exception: What tracing raises.
    """
    family = PUBLIC_FAMILIES[candidate.family]
    bound = _bind(candidate)
    call = Call(
        function=bound.function,
        arguments=bound.arguments,
        kernel_name=family.kernel_name(candidate.problem, candidate.config),
        donated=(3,),
    )
    with bound.pretend():
        return compile_call(call, candidate.chip)


def scalar_operands(candidate: Candidate, batch: Batch) -> Operands:
    """The int32 arrays that the family's call reads for a batch, by operand index.

    Sequences of the prefill slot are handed over as mixed ones. What the wheel's code made is kept
    beside the wheel.

    Raises:
      UsageError: The function makes no call of the expected name: the wheel is another one.
    """
    served = replace(batch, num_prefill=0)
    family, problem = PUBLIC_FAMILIES[candidate.family], candidate.problem
    calls = kept_calls(
        wheel.current_root(),
        (family.kernel, candidate.chip, problem, block_sizes(candidate), None, served),
        lambda: _bind(candidate).pallas_calls(served),
    )
    wanted = family.kernel_name(problem, candidate.config)
    for call in calls:
        if call.name == wanted:
            return call.operands
    raise UsageError(
        f"the public function calls {[call.name for call in calls]}, not {wanted}",
        hint=f"rpa-tune knows tpu-inference {wheel.VERSION}",
    )


@functools.lru_cache(maxsize=1)  # it remembers what it compiled for the batch before
def _bind(candidate: Candidate) -> tpu_inference.ForeignCall:
    return tpu_inference.bind(
        PUBLIC_FAMILIES[candidate.family].kernel,
        wheel.current_root(),
        chip=load_chip(candidate.chip),
        problem=candidate.problem,
        blocks=block_sizes(candidate),
    )


def block_sizes(candidate: Candidate) -> Any:
    """A candidate's config as `tpu_inference.bind` takes it; the other case gets small blocks."""
    family, problem, config = (
        PUBLIC_FAMILIES[candidate.family], candidate.problem, candidate.config
    )  # fmt: skip
    bkv = layout.align(_IDLE_BKV_TOKENS, problem.page_size)
    if family.kernel == "hd64":
        return (config.bkv_sz // problem.page_size, config.bq_sz)
    is_decode = "decode" in family.slots
    if family.kernel == "v3":
        tuned = (config.bq_sz, config.bkv_sz, config.bq_csz, config.bkv_csz)
        if is_decode:
            return {"d": tuned, "m": (_IDLE_BQ_TOKENS, bkv, _IDLE_BQ_TOKENS, bkv)}
        return {"d": (1, bkv, 1, bkv), "m": tuned}
    idle = {"bkv_sz": bkv, "batch_size": 1, "n_buffer": 2}
    blocks = {
        "decode": {"bq_sz": 1, "bq_c_sz": 1, **idle},
        "prefill": {"bq_sz": _IDLE_BQ_TOKENS, "bq_c_sz": _IDLE_BQ_TOKENS, **idle},
        "decode" if is_decode else "prefill": asdict(config),
    }
    if family.kernel == "stacked":
        del blocks["decode"]["bq_c_sz"]
    return blocks


def _choose_v3(family: PublicFamily, problem: Problem, target: Target) -> dict[str, int]:
    del target
    module: Any = wheel.load_module(wheel.current_root(), tpu_inference.MODULES["v3"])
    case = module.RpaCase.DECODE if "decode" in family.slots else module.RpaCase.MIXED
    sizes: dict[str, int] = module.get_default_block_sizes(
        *_shape_arguments(problem, problem.padded_head_dim),
        problem.max_num_tokens,
        problem.max_num_seqs,
        problem.pages_per_seq,
        case=case,
    )
    return sizes


def _choose_hd64(family: PublicFamily, problem: Problem, target: Target) -> dict[str, int]:
    del family
    pages, queries = tpu_inference.choose_hd64(
        wheel.current_root(), load_chip(target.chip), problem
    )
    return {"bq_sz": queries, "bkv_sz": pages * problem.page_size}


def _choose_batched(family: PublicFamily, problem: Problem, target: Target) -> dict[str, int]:
    """Both experimental kernels keep model and serving shapes in two records."""
    package = tpu_inference.MODULES["batched"].rsplit(".", 1)[0]
    model, serve = _records(package, problem)
    tuned: Any = wheel.load_module(wheel.current_root(), f"{package}.tuned_params")
    case = "decode" if "decode" in family.slots else "prefill"
    return asdict(tuned.get_tuned_params(model, serve, target.vmem_bytes, case=case))


def _choose_stacked(family: PublicFamily, problem: Problem, target: Target) -> dict[str, int]:
    package = tpu_inference.MODULES["stacked"].rsplit(".", 1)[0]
    model, serve = _records(package, problem)
    if "decode" not in family.slots:
        prefill: Any = wheel.load_module(wheel.current_root(), f"{package}.prefill.block_sizes")
        return asdict(prefill.choose_block_sizes(model, serve, target.vmem_bytes))
    decode: Any = wheel.load_module(wheel.current_root(), f"{package}.decode.block_sizes")
    has_window = problem.sliding_window is not None
    kind = "sliding_window" if has_window else "non_sliding_window"
    sizes = getattr(decode, f"choose_{kind}_block_sizes")(model, serve, target.vmem_bytes)
    return {**asdict(sizes), "bq_c_sz": sizes.bq_sz}


_CHOOSERS = {
    "v3": _choose_v3,
    "hd64": _choose_hd64,
    "batched": _choose_batched,
    "stacked": _choose_stacked,
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
    configs: Any = wheel.load_module(wheel.current_root(), f"{package}.configs")
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
