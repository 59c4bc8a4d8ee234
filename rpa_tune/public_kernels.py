"""The public RPA kernels of tpu-inference as families: configs, limits, axes. No jax, no wheel.

One family is one Pallas call of a public function: `public-v3-decode` is the call that serves the
decode sequences, tuned while the function's other call gets small blocks. The kernels are not
ours, so there is no exact account: bytes, FLOPs and scratch are floors that no kernel goes below,
good for bounding and for noticing a schedule that drops work. What needs the wheel (the function's
own choice of blocks, compiling) is in `interop/candidates.py`, loaded when asked for.
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
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.errors import UsageError

VERSION = "0.32.0"  # of tpu-inference
# Stands where our families have a digest of their sources. Raise the number behind the slash when
# an adapter changes what is compiled.
KERNEL_DIGEST = f"tpu-inference-{VERSION}/2"
# The chips that the public kernels take, and what `get_device_name` of the wheel calls them.
# Source: tpu-inference 0.32.0, `get_default_block_sizes` (no version 4) and utils.py; v5p announces
# itself as `TPU v5`.
DEVICE_NAMES = {"v5e": "TPU v5e", "v5p": "TPU v5", "v6e": "TPU v6e", "v7x": "TPU v7"}
WHEELS = "wheels"  # folder of the compile cache that keeps the unpacked wheel
_STACKED_BUFFERS = 2  # Source: NUM_BUFFERS in stacked_rpa/{decode,prefill}/block_sizes.py


@dataclass(frozen=True, kw_only=True, slots=True)
class V3Config:
    """Block sizes of one case of the v3 kernel; its `{d,m}_block_sizes` in this order.

    Attributes:
      bq_sz: Tokens of a query block.
      bkv_sz: Tokens of a KV block that is fetched; whole pages.
      bq_csz: Tokens of a query block that is computed at once; divides `bq_sz`.
      bkv_csz: Tokens of a KV block that is computed at once; divides `bkv_sz`, whole pages.
    """

    bq_sz: int
    bkv_sz: int
    bq_csz: int
    bkv_csz: int

    def check(self, problem: Problem, target: Target) -> Infeasible | None:
        """None when the kernel takes these blocks, else the limit they break."""
        bad = limits.check_positive(
            bq_sz=self.bq_sz, bkv_sz=self.bkv_sz, bq_csz=self.bq_csz, bkv_csz=self.bkv_csz
        )
        bad = bad or _check_call(problem, target)
        for name, whole, part in (
            ("bq_sz % bq_csz", self.bq_sz, self.bq_csz),
            ("bkv_sz % bkv_csz", self.bkv_sz, self.bkv_csz),
            ("bkv_csz % page_size", self.bkv_csz, problem.page_size),
        ):
            bad = bad or _check_multiple(name, whole, part)
        return bad or _check_scratch(v3_scratch_bytes(problem, self, target), target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hd64Config:
    """Block sizes of the hd64 kernel, which serves all sequences in one call.

    Attributes:
      bq_sz: Its `num_queries_per_block`.
      bkv_sz: Its `num_kv_pages_per_block`, in tokens.
    """

    bq_sz: int
    bkv_sz: int

    def check(self, problem: Problem, target: Target) -> Infeasible | None:
        """None when the kernel takes these blocks, else the limit they break."""
        bad = limits.check_positive(bq_sz=self.bq_sz, bkv_sz=self.bkv_sz)
        bad = bad or _check_call(problem, target, is_hd64=True)
        bad = bad or _check_multiple("bkv_sz % page_size", self.bkv_sz, problem.page_size)
        return bad or _check_scratch(v3_scratch_bytes(problem, self, target), target)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchedConfig:
    """Block sizes of the batched kernel, and of the stacked one, whose `n_buffer` is 2.

    Attributes:
      bq_sz: Tokens of a query block.
      bq_c_sz: Tokens of a query block that is computed at once; divides `bq_sz`.
      bkv_sz: Tokens of a KV block; whole pages.
      batch_size: Sequences, or parts of one, that are handled together.
      n_buffer: KV blocks in flight.
    """

    bq_sz: int
    bq_c_sz: int
    bkv_sz: int
    batch_size: int
    n_buffer: int

    def check(self, problem: Problem, target: Target) -> Infeasible | None:
        """None when the kernel takes these blocks, else the limit they break."""
        bad = limits.check_positive(
            bq_sz=self.bq_sz, bq_c_sz=self.bq_c_sz, bkv_sz=self.bkv_sz,
            batch_size=self.batch_size, n_buffer=self.n_buffer,
        )  # fmt: skip
        bad = bad or _check_call(problem, target)
        bad = bad or _check_multiple("bq_sz % bq_c_sz", self.bq_sz, self.bq_c_sz)
        bad = bad or _check_multiple("bkv_sz % page_size", self.bkv_sz, problem.page_size)
        if bad is None and problem.kv_dtype == "int8":
            bad = _refusal("kv_dtype int8", "the kernel takes floating-point caches only")
        return bad or _check_scratch(batched_scratch_bytes(problem, self, target), target)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicFamily(KernelFamily):
    """A public kernel as a family.

    Attributes:
      kernel: `v3`, `hd64`, `batched` or `stacked`.
      slots: Which sequences of a batch its Pallas call serves.
    """

    kernel: str
    slots: tuple[str, ...]


def v3_scratch_bytes(problem: Problem, config: Any, target: Target) -> int:
    """Bytes of the two KV and two query buffers: less than what the kernel holds in VMEM."""
    del target
    block = config.bkv_sz * problem.kv_token_bytes + config.bq_sz * problem.q_token_bytes
    return int(2 * block)


def batched_scratch_bytes(problem: Problem, config: Any, target: Target) -> int:
    """Bytes of the KV and query buffers: less than what the kernel holds in VMEM."""
    del target
    block = config.bkv_sz * problem.kv_token_bytes + config.bq_sz * problem.q_token_bytes
    return int(config.batch_size * config.n_buffer * block)


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
    return sum(layout.cdiv(batch.kv_lens[i], config.bkv_sz) for i in seqs)


def _smem_bytes(problem: Problem, config: Any) -> int:
    del config
    return limits.smem_bytes(problem)


def _refusal(limit: str, hint: str) -> Infeasible:
    return Infeasible(limit=limit, need=1, have=0, unit="", hint=hint)


def _check_call(problem: Problem, target: Target, *, is_hd64: bool = False) -> Infeasible | None:
    """What no block sizes can mend. Source: the functions' own input checks."""
    if target.chip not in DEVICE_NAMES:
        return _refusal("chip", f"the public kernels know {', '.join(DEVICE_NAMES)}")
    if problem.fuses_kv != is_hd64:
        return _refusal("head_dim", "public-hd64 takes head_dim 64, the others do not")
    if problem.has_sinks and not is_hd64:
        return _refusal("sinks", "only public-hd64 takes attention sinks")
    has_default_output = problem.out_dtype in (None, problem.q_dtype)
    if not problem.causal or not problem.update_kv_cache or not has_default_output:
        hint = "public kernels are tuned with a causal mask, a cache update and the default output"
        return _refusal("features", hint)
    return None


def _check_multiple(limit: str, whole: int, part: int) -> Infeasible | None:
    if whole % part:
        return Infeasible(limit=limit, need=whole, have=part, unit="tokens")
    return None


def _check_scratch(scratch: int, target: Target) -> Infeasible | None:
    """Only what cannot fit: the compiler has the last word on the rest."""
    if scratch > target.vmem_bytes:
        return Infeasible(
            limit="vmem_bytes", need=scratch, have=target.vmem_bytes, unit="bytes",
            hint="buffers alone exceed VMEM",
        )  # fmt: skip
    return None


def _refuse_launch(*_: Any, **__: Any) -> Any:
    raise UsageError(
        "public kernels are tuned, not launched",
        hint="export their rows: rpa-tune tables export",
    )


def _default_config(name: str, problem: Problem, target: Target) -> Any:
    """What the public function chooses itself; needs the wheel."""
    family = PUBLIC_FAMILIES[name]
    if bad := _check_call(problem, target, is_hd64=family.config_type is Hd64Config):
        return bad
    # By name, so that reading tables and stores never loads the tuning half.
    candidates = importlib.import_module("rpa_tune.interop.candidates")
    return candidates.default_config(family, problem, target)


def _sizes(problem: Problem, values: tuple[int, ...]) -> tuple[int, ...]:
    return limits.block_sizes(problem, values)


def _queries(problem: Problem, values: tuple[int, ...]) -> tuple[int, ...]:
    fitting = tuple(value for value in values if value <= problem.max_num_tokens)
    return fitting or values[:1]


def _v3_decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": (1,),
        "bkv_sz": _sizes(problem, (256, 512, 1024, 2048, 4096, 8192)),
        "bq_csz": (1,),
        "bkv_csz": _sizes(problem, (256, 512, 1024, 2048)),
    }


def _v3_mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bkv_sz": _sizes(problem, (256, 512, 1024, 2048, 4096)),
        "bq_csz": _queries(problem, (16, 32, 64, 128)),
        "bkv_csz": _sizes(problem, (256, 512, 1024)),
    }


def _hd64_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (8, 16, 32, 64, 128)),
        "bkv_sz": _sizes(problem, (128, 256, 512, 1024, 2048, 4096)),
    }


def _batched_decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": (1,),
        "bq_c_sz": (1,),
        "bkv_sz": _sizes(problem, (256, 512, 1024, 2048, 4096)),
        "batch_size": (1, 2, 4, 8, 16),
        "n_buffer": (2, 3, 4),
    }


def _batched_mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bq_c_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bkv_sz": _sizes(problem, (256, 512, 1024, 2048)),
        "batch_size": (1, 2),
        "n_buffer": (2, 3),
    }


def _stacked(axes: Callable[..., Any], problem: Problem, target: Target) -> Any:
    return {**axes(problem, target), "n_buffer": (_STACKED_BUFFERS,)}


def _v3_name(letter: str, problem: Problem, config: Any) -> str:
    """Name of the Pallas call. Source: `scope_name` in v3/kernel.py."""
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
    return PublicFamily(
        name=name,
        kernel=kernel,
        slots=slots,
        config_type=config_type,
        default_config=partial(_default_config, name),
        search_axes=axes,
        scratch_bytes=batched_scratch_bytes if batched else v3_scratch_bytes,
        smem_bytes=_smem_bytes,
        split=None,
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
        _family("v3", "decode", V3Config, _v3_decode_axes, partial(_v3_name, "d")),
        _family("v3", "mixed", V3Config, _v3_mixed_axes, partial(_v3_name, "m")),
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
