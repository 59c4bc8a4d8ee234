"""The public RPA kernels of tpu-inference as families: configs, limits, axes. No jax, no wheel.

One family is one Pallas call of a public function: `public-v3-decode` is the call that serves the
decode sequences, tuned while the function's other call gets small blocks. The kernels are not
ours, so there is no exact account: bytes, FLOPs and scratch are floors that no kernel goes below,
good for bounding and for noticing a schedule that drops work. What needs the wheel (the function's
own choice of blocks, compiling) is in `interop/`, loaded when asked for.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rpa_kernels import layout, limits, useful
from rpa_kernels.batch import Batch
from rpa_kernels.cores import ONLY_CORE, Core
from rpa_kernels.family import KernelFamily, Traffic
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.errors import UsageError
from rpa_tune.public_configs import (
    BatchedConfig,
    Hd64Config,
    V3Config,
    batched_scratch_bytes,
    check_batched,
    check_call,
    check_hd64,
    check_v3,
    refusal,
    v3_scratch_bytes,
    why_untraceable,
)

_STACKED_BUFFERS = 2  # Source: NUM_BUFFERS in stacked_rpa/{decode,prefill}/block_sizes.py


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicFamily(KernelFamily):
    """A public kernel as a family.

    Attributes:
      kernel: `v3`, `hd64`, `batched` or `stacked`.
      slots: Which sequences of a batch its Pallas call serves.
    """

    kernel: str
    slots: tuple[str, ...]


def least_cached_bytes(problem: Problem, batch: Batch, slots: tuple[str, ...]) -> int:
    """Bytes of cached K and V that a kernel must read; 0 where a window makes it fewer."""
    if problem.sliding_window is not None:
        return 0
    token_bytes = 2 * problem.num_kv_heads * problem.head_dim * layout.dtype_bytes(problem.kv_dtype)
    seqs = [i for slot in slots for i in batch.family_seqs(slot)]
    return sum(batch.kv_lens[i] - batch.q_lens[i] for i in seqs) * token_bytes


def _traffic(
    slots: tuple[str, ...], problem: Problem, config: Any, batch: Batch, core: Core = ONLY_CORE
) -> Traffic:
    """Bytes that no kernel could avoid moving, by direction; no copy is counted."""
    del config, core
    tokens = sum(batch.q_lens[i] for slot in slots for i in batch.family_seqs(slot))
    token_q = problem.num_q_heads * problem.head_dim * layout.dtype_bytes(problem.q_dtype)
    token_kv = 2 * problem.num_kv_heads * problem.head_dim * layout.dtype_bytes(problem.kv_dtype)
    written = tokens * (token_q + (token_kv if problem.update_kv_cache else 0))
    total = _useful_bytes(slots, problem, batch)
    return Traffic(read_bytes=total - written, write_bytes=written, num_copies=0)


def _useful_bytes(slots: tuple[str, ...], problem: Problem, batch: Batch) -> int:
    return sum(useful.useful_bytes(slot, problem, batch) for slot in slots)


def _useful_flops(slots: tuple[str, ...], problem: Problem, batch: Batch) -> int:
    return sum(useful.useful_flops(slot, problem, batch) for slot in slots)


def _mxu_flops(
    slots: tuple[str, ...],
    problem: Problem,
    config: Any,
    batch: Batch,
    target: Target,
    core: Core = ONLY_CORE,
) -> int:
    del config, target, core
    return _useful_flops(slots, problem, batch)


def _num_steps(
    slots: tuple[str, ...], problem: Problem, config: Any, batch: Batch, core: Core = ONLY_CORE
) -> int:
    """KV blocks of all contexts: each is walked at least once."""
    del problem, core
    seqs = [i for slot in slots for i in batch.family_seqs(slot)]
    return sum(cdiv(batch.kv_lens[i], config.bkv_sz) for i in seqs)


def _smem_bytes(problem: Problem, config: Any) -> int:
    del config
    return limits.smem_bytes(problem)


def _refuse_launch(*_: Any, **__: Any) -> Any:
    raise UsageError(
        "public kernels are tuned, not launched",
        hint="export their rows: rpa-tune tables export",
    )


def _default_config(name: str, problem: Problem, target: Target) -> Any:
    """What the public function chooses itself; needs the wheel."""
    family = PUBLIC_FAMILIES[name]
    if bad := check_call(problem, target, is_hd64=family.config_type is Hd64Config):
        return bad
    if reason := why_untraceable(family.kernel):
        return refusal("jax", reason)
    # By name, so that reading tables and stores never loads the tuning half.
    own_choice = importlib.import_module("rpa_tune.interop.own_choice")
    is_decode = "decode" in family.slots
    fields = own_choice.block_sizes(family.kernel, is_decode, problem, target)
    return fields if isinstance(fields, Infeasible) else family.config_type(**fields)


def _queries(problem: Problem, values: tuple[int, ...]) -> tuple[int, ...]:
    fitting = tuple(value for value in values if value <= problem.max_num_tokens)
    return fitting or values[:1]


def _v3_decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": (1,),
        "bkv_sz": limits.block_sizes(problem, (256, 512, 1024, 2048, 4096, 8192)),
        "bq_csz": (1,),
        "bkv_csz": limits.block_sizes(problem, (256, 512, 1024, 2048)),
    }


def _v3_mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bkv_sz": limits.block_sizes(problem, (256, 512, 1024, 2048, 4096)),
        "bq_csz": _queries(problem, (16, 32, 64, 128)),
        "bkv_csz": limits.block_sizes(problem, (256, 512, 1024)),
    }


def _hd64_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (8, 16, 32, 64, 128)),
        "bkv_sz": limits.block_sizes(problem, (128, 256, 512, 1024, 2048, 4096)),
    }


def _batched_decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": (1,),
        "bq_c_sz": (1,),
        "bkv_sz": limits.block_sizes(problem, (256, 512, 1024, 2048, 4096)),
        "batch_size": (1, 2, 4, 8, 16),
        "n_buffer": (2, 3, 4),
    }


def _batched_mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bq_c_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bkv_sz": limits.block_sizes(problem, (256, 512, 1024, 2048)),
        "batch_size": (1, 2),
        "n_buffer": (2, 3),
    }


def _stacked(axes: Callable[..., Any], problem: Problem, target: Target) -> Any:
    return {**axes(problem, target), "n_buffer": (_STACKED_BUFFERS,)}


def v3_name(letter: str, problem: Problem, config: V3Config) -> str:
    """Name of the Pallas call of a case: `d`, `p` or `m`. Source: `scope_name` in v3/kernel.py."""
    blocks = f"bq_{config.bq_sz}_{config.bq_csz}-bkv_{config.bkv_sz}_{config.bkv_csz}"
    return f"RPA{letter}-p_{problem.page_size}-{blocks}" + _window("-sw_", problem)


def _hd64_name(problem: Problem, config: Any) -> str:
    """The same. Source: `get_kernel_scope_name` in v3/kernel_hd64.py."""
    pages = config.bkv_sz // problem.page_size
    name = f"RPA-HD_64-bq_{config.bq_sz}-bkvp_{pages}-p_{problem.page_size}"
    return name + _window("-sw_", problem)


def _batched_name(letter: str, problem: Problem, config: Any) -> str:
    """The same. Source: `get_kernel_name` in batched_rpa/kernel.py and stacked_rpa/*/kernel.py."""
    blocks = f"b{config.batch_size}-q{config.bq_sz}-k{config.bkv_sz}"
    return f"RPA{letter}-p{problem.page_size}-{blocks}" + _window("-sw", problem)


def _window(prefix: str, problem: Problem) -> str:
    return "" if problem.sliding_window is None else f"{prefix}{problem.sliding_window}"


def _family(
    kernel: str, case: str, config_type: type[Any], axes: Callable[..., Any], name_of: Any
) -> PublicFamily:
    """Puts a family together; a case of decode or mixed, or an empty one for all sequences."""
    name = f"public-{kernel}-{case}" if case else f"public-{kernel}"
    # No engine fills the prefill slot, and without a static chunk no call would serve it: its
    # sequences are handed to the mixed call, as an engine hands them.
    served = {"decode": ("decode",), "mixed": ("prefill", "mixed")}
    slots = served.get(case, ("decode", "prefill", "mixed"))
    batched = config_type is BatchedConfig
    checks: dict[type[Any], Callable[..., Infeasible | None]] = {
        V3Config: check_v3, Hd64Config: check_hd64, BatchedConfig: check_batched,
    }  # fmt: skip
    return PublicFamily(
        name=name,
        kernel=kernel,
        slots=slots,
        config_type=config_type,
        check=checks[config_type],
        default_config=partial(_default_config, name),
        search_axes=axes,
        scratch_bytes=batched_scratch_bytes if batched else v3_scratch_bytes,
        smem_bytes=_smem_bytes,
        partition=None,
        traffic=partial(_traffic, slots),
        useful_bytes=partial(_useful_bytes, slots),
        mxu_flops=partial(_mxu_flops, slots),
        useful_flops=partial(_useful_flops, slots),
        num_steps=partial(_num_steps, slots),
        launch=_refuse_launch,
        kernel_name=name_of,
    )


PUBLIC_FAMILIES = {
    family.name: family
    for family in (
        _family("v3", "decode", V3Config, _v3_decode_axes, partial(v3_name, "d")),
        _family("v3", "mixed", V3Config, _v3_mixed_axes, partial(v3_name, "m")),
        _family("hd64", "", Hd64Config, _hd64_axes, _hd64_name),
        _family("batched", "decode", BatchedConfig, _batched_decode_axes,
                partial(_batched_name, "d")),
        _family("batched", "mixed", BatchedConfig, _batched_mixed_axes,
                partial(_batched_name, "m")),
        _family("stacked", "decode", BatchedConfig, partial(_stacked, _batched_decode_axes),
                partial(_batched_name, "d")),
        _family("stacked", "mixed", BatchedConfig, partial(_stacked, _batched_mixed_axes),
                partial(_batched_name, "m")),
    )
}  # fmt: skip
