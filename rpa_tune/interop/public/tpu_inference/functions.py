"""The public kernels of tpu-inference as candidates: v3, hd64, batched, stacked, and mla.

Each adapter says what to call, with which abstract arguments, and which arrays the kernels
read on their scalar side for a batch, so that a foreign kernel is compiled and simulated just
like ours. Block sizes and the VMEM limit are always explicit: off a TPU the public functions
cannot look them up.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.launches import Recorder
from rpa_tune.interop.public.operands import PallasCall
from rpa_tune.interop.public.tpu_inference.arrays import abstract_arguments, num_leading
from rpa_tune.interop.public.tpu_inference.mla import mla_keywords
from rpa_tune.interop.public.tpu_inference.package import (
    DEVICE_NAMES,
    PACKAGE,
    WHEEL,
    why_untraceable,
)

KERNELS = "tpu_inference.kernels"
MODULES = {
    "v3": f"{KERNELS}.ragged_paged_attention.v3.kernel",
    "hd64": f"{KERNELS}.ragged_paged_attention.v3.kernel_hd64",
    "batched": f"{KERNELS}.experimental.batched_rpa.wrapper",
    "stacked": f"{KERNELS}.experimental.stacked_rpa.wrapper",
    "mla": f"{KERNELS}.mla.v2.kernel",
}
# The others: ragged_paged_attention
FUNCTIONS = {"hd64": "ragged_paged_attention_hd64", "mla": "mla_ragged_paged_attention"}
GENERATION = {"v5e": 5, "v5p": 5, "v6e": 6, "v7x": 7}  # v4 is refused by the public kernels

# Share of SMEM that these kernels are told. Told all of it, they leave 32 or 256 KiB beside their
# schedule, and libtpu 0.0.42.1 then spills scalars to HBM: 2 to 20 times slower in simulation.
SMEM_SHARE = {MODULES["batched"]: 0.5, MODULES["stacked"]: 0.75}

# Parameters that an adapter relies on; a signature without them has drifted.
_SCALARS = ("kv_lens", "page_indices", "cu_q_lens", "distribution")
LEADING = dict.fromkeys(MODULES, ("queries", "keys", "values", "kv_cache", *_SCALARS)) | {
    "mla": ("ql_nope", "q_pe", "new_kv_c", "new_k_pe", "cache_kv", *_SCALARS)
}
REQUIRED = {
    "v3": {"d_block_sizes", "m_block_sizes", "vmem_limit_bytes", "sliding_window", "sm_scale"},
    "hd64": {"num_kv_pages_per_block", "num_queries_per_block", "vmem_limit_bytes"},
    "batched": {"decode_block_sizes", "prefill_block_sizes", "vmem_limit_bytes", "kv_layout"},
    "stacked": {"decode_block_sizes", "prefill_block_sizes", "vmem_limit_bytes"},
    "mla": {"num_kv_pages_per_block", "num_queries_per_block", "decode_batch_size",
            "mixed_q_split", "vmem_limit_bytes", "sliding_window", "sm_scale"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ForeignCall:
    """A public attention function bound to a problem and its block sizes.

    Attributes:
      kernel: A key of `MODULES`.
      chip: The chip to compile for.
      problem: Static shapes and dtypes.
      function: The bound public function; takes the arrays of `LEADING`, then sinks if the problem
        has them (hd64 only).
      arguments: Abstract arrays for `function`.
      module: The wheel's module, patched by `pretend`.
      smem_share: Share of SMEM that the function is told.
      recorder: What finds its launches.
    """

    kernel: str
    chip: Chip
    problem: Problem
    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    module: Any
    smem_share: float
    recorder: Recorder = dataclasses.field(repr=False)

    @property
    def donated(self) -> tuple[int, ...]:
        """Arguments that the function may overwrite: the cache."""
        return (num_leading(self.kernel) - 1,)

    def pretend(self) -> contextlib.AbstractContextManager[None]:
        """Where the function may be traced; see `pretend`."""
        return pretend(self.chip, self.module, self.smem_share)

    def pallas_calls(self, batch: Batch) -> tuple[PallasCall, ...]:
        """What the function launches for `batch`, with the scalars each launch reads.

        Raises:
          ScheduleTooLongError: With this share of SMEM the function would drop work.
          Exception: What the function raises.
        """
        return self.recorder.calls(self.problem, batch)


@contextlib.contextmanager
def pretend(chip: Chip, module: Any, smem_share: float | None = None) -> Iterator[None]:
    """Answers the wheel's questions about the chip with `chip`; of SMEM it gets a share.

    Args:
      chip: The chip to compile for.
      module: The wheel's module whose function is traced.
      smem_share: None: what `SMEM_SHARE` says.
    """
    device = AbstractDevice(device_kind=chip.device_kinds[0], num_cores=1, platform="tpu")
    mesh = AbstractMesh((), (), abstract_device=device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        if not hasattr(pltpu, "reciprocal"):  # the name up to jax 0.9; hd64 still uses it
            stack.enter_context(mock.patch.object(pltpu, "reciprocal", pl.reciprocal, create=True))
        if hasattr(module, "get_tpu_version"):
            stack.enter_context(
                mock.patch.object(module, "get_tpu_version", return_value=GENERATION[chip.name])
            )
        share = SMEM_SHARE.get(module.__name__, 1.0) if smem_share is None else smem_share
        if share < 1:
            info = pltpu.get_tpu_info()
            told = dataclasses.replace(
                info, smem_capacity_bytes=int(info.smem_capacity_bytes * share)
            )
            stack.enter_context(mock.patch.object(pltpu, "get_tpu_info", return_value=told))
        yield


def bind(
    kernel: str,
    root: Path,
    *,
    chip: Chip,
    problem: Problem,
    blocks: Any,
    smem_share: float | None = None,
) -> ForeignCall:
    """Binds a public function to a problem and block sizes.

    Args:
      kernel: One of `MODULES`.
      root: Folder of the unpacked wheel; see `Wheel.fetch`.
      chip: The chip to compile for; not v4.
      problem: Static shapes and dtypes.
      blocks: v3: `{"d": 4-tuple, "m": 4-tuple}` of (bq_sz, bkv_sz, bq_csz, bkv_csz) in tokens;
        hd64: (pages, queries); batched and stacked: `{"decode": {...}, "prefill": {...}}` with
        the fields of the public BlockSizes; mla: `{"decode": {...}, "mixed": {...}}` with the
        fields of its configs; None: what the function chooses itself.
      smem_share: Share of SMEM that it is told; None: what `SMEM_SHARE` says, or all of it where it
        refuses with less.

    Raises:
      UsageError: An unknown kernel, a chip the public kernels refuse, a drifted signature, or a
        kernel that this jax does not trace.
    """
    function, module = _load_function(kernel, root, chip, problem)
    options: dict[str, Any] = {
        "sm_scale": problem.sm_scale,
        "sliding_window": problem.sliding_window,
        "soft_cap": problem.soft_cap,
        "k_scale": problem.k_scale,
        "v_scale": problem.v_scale,
        "q_scale": problem.q_scale,
        "vmem_limit_bytes": chip.vmem_bytes,
        **_block_options(kernel, root, chip, problem, blocks),
    }

    def bound(*arrays: Any) -> Any:
        return function(*arrays, **options)

    arguments = abstract_arguments(kernel, problem)
    if smem_share is None:
        key = (kernel, str(root), chip.name, problem, repr(blocks))
        smem_share = _smem_share(key, chip, module, bound, arguments)
    else:
        # jit remembers a trace by its arguments, and SMEM is none of them.
        jax.clear_caches()
    where = partial(pretend, chip, module, smem_share)
    return ForeignCall(
        kernel=kernel,
        chip=chip,
        problem=problem,
        function=bound,
        arguments=arguments,
        module=module,
        smem_share=smem_share,
        recorder=Recorder(bound, arguments, where, num_leading(kernel)),
    )


def _load_function(
    kernel: str, root: Path, chip: Chip, problem: Problem
) -> tuple[Callable[..., Any], Any]:
    """(function, its module), if there is one that could serve the problem."""
    if kernel not in MODULES:
        raise UsageError(f"unknown public kernel {kernel!r}", hint=f"one of {sorted(MODULES)}")
    if chip.name not in GENERATION:
        raise UsageError(f"the public kernels refuse {chip.name}")
    if problem.is_latent is not (kernel == "mla"):
        raise UsageError(f"the public {kernel} kernel has no cache of this kind (rope_dim)")
    if problem.has_sinks and kernel != "hd64":
        raise UsageError(f"the public {kernel} kernel has no attention sinks")
    if problem.attention_chunk_size is not None:
        raise UsageError(f"the public {kernel} kernel has no chunked local attention")
    if problem.is_seq_along_lane and kernel != "batched":
        raise UsageError(f"the public {kernel} kernel has no kv_layout {problem.kv_layout}")
    if problem.return_lse:
        raise UsageError(f"the public {kernel} kernel returns no log-sum-exp")
    if problem.decode_query_size > 1:
        raise UsageError(f"the public {kernel} kernel decodes one token a sequence")
    if reason := why_untraceable(kernel):
        raise UsageError(reason, hint="jax 0.10.2 traces it")
    module = WHEEL.load(root, MODULES[kernel])
    function = getattr(module, FUNCTIONS.get(kernel, "ragged_paged_attention"))
    check_signature(kernel, function)
    return function, module


_smem_shares: dict[Any, float] = {}  # what tracing found, once a process


def _smem_share(
    key: Any, chip: Chip, module: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> float:
    """The share of SMEM that a function is told: all of it where it refuses with less."""
    if module.__name__ not in SMEM_SHARE:
        return 1.0
    if key not in _smem_shares:
        _smem_shares[key] = SMEM_SHARE[module.__name__]
        with pretend(chip, module):
            try:
                jax.eval_shape(function, *arguments)
            except ValueError:  # its schedule does not fit
                _smem_shares[key] = 1.0
            except Exception:  # no matter of SMEM: it is said again when it is compiled
                pass
    return _smem_shares[key]


def check_signature(kernel: str, function: Callable[..., Any]) -> None:
    """Refuses a public function whose signature has drifted.

    Raises:
      UsageError: The leading arrays or the options an adapter relies on are not there.
    """
    names, leading = list(inspect.signature(function).parameters), LEADING[kernel]
    missing = sorted(REQUIRED[kernel] - set(names))
    if tuple(names[: len(leading)]) != leading or missing:
        raise UsageError(
            f"the signature of tpu-inference's {kernel} kernel has drifted: missing {missing}, "
            f"leading parameters {names[: len(leading)]}",
            hint=f"rpa-tune supports {PACKAGE.title}",
        )


def choose_hd64(root: Path, chip: Chip, problem: Problem) -> tuple[int, int]:
    """(pages, queries) of the hd64 kernel: a row of the public table, or its default for the chip.

    The function looks them up itself, but by the name of a device that is not there.
    """
    name = MODULES["hd64"].rsplit(".", 1)[0] + ".tuned_block_sizes_hd64"
    module: Any = WHEEL.load(root, name)
    with (
        mock.patch.object(module, "get_device_name", return_value=DEVICE_NAMES[chip.name]),
        mock.patch.object(module, "get_tpu_version", return_value=GENERATION[chip.name]),
        mock.patch.object(module, "logger"),  # its `info_once` is vllm's
    ):
        pages, queries = module.get_tuned_block_sizes(
            jnp.dtype(problem.q_dtype),
            jnp.dtype(problem.kv_dtype),
            problem.num_q_heads,
            problem.num_kv_heads,
            problem.head_dim,
            problem.page_size,
            problem.max_num_tokens,
            problem.pages_per_seq,
            problem.sliding_window,
        )
    return pages, queries


def choose_mla(root: Path, problem: Problem) -> dict[str, dict[str, int]]:
    """The blocks that the engine looks up for the latent kernel: rows of its table, or defaults.

    The function does not look them up itself. Source: `mla_attention` of
    layers/common/attention_interface.py; the key names no device. Its `vmem_limit_bytes` is not
    handed over.
    """
    module: Any = WHEEL.load(root, MODULES["mla"].rsplit(".", 1)[0] + ".tuned_params")
    _, rows, packing, _ = problem.kv_cache_shape

    def look_up(case: str) -> Any:
        key = module.TuningKey(
            case=case,
            max_num_tokens=problem.max_num_tokens,
            actual_num_q_heads=problem.num_q_heads,
            actual_lkv_dim=problem.head_dim,
            actual_r_dim=problem.rope_dim,
            kv_dtype=problem.kv_dtype,
            q_dtype=problem.q_dtype,
            page_size_per_kv_packing=rows,
            kv_packing=packing,
            max_num_seqs=problem.max_num_seqs,
            pages_per_seq=problem.pages_per_seq,
        )
        with mock.patch.object(module, "logger"):  # it warns of every key that it has not
            return module.get_tuned_params(key)

    decode, mixed = look_up("batched_decode"), look_up("mixed")
    return {
        "decode": {
            "bkv_sz": decode.num_kv_pages_per_block * problem.page_size,
            "batch_size": decode.decode_batch_size,
        },
        "mixed": {
            "bq_sz": mixed.num_queries_per_block,
            "bkv_sz": mixed.num_kv_pages_per_block * problem.page_size,
            "q_split": mixed.q_split,
        },
    }


def _block_options(
    kernel: str, root: Path, chip: Chip, problem: Problem, blocks: Any
) -> dict[str, Any]:
    if kernel == "mla":
        cases = blocks or choose_mla(root, problem)
        return mla_keywords(**cases, page_size=problem.page_size)
    if blocks is None and kernel == "hd64":
        blocks = choose_hd64(root, chip, problem)
    if blocks is None and kernel != "batched":
        return {}
    if kernel == "v3":
        return {"d_block_sizes": tuple(blocks["d"]), "m_block_sizes": tuple(blocks["m"])}
    if kernel == "hd64":
        return {"num_kv_pages_per_block": blocks[0], "num_queries_per_block": blocks[1]}
    package = MODULES[kernel].rsplit(".", 1)[0]
    if kernel == "batched":
        configs = WHEEL.load(root, f"{package}.configs")
        sizes = {
            f"{case}_block_sizes": configs.BlockSizes(**fields)
            for case, fields in (blocks or {}).items()
        }
        return {**sizes, "kv_layout": configs.KVLayout(problem.kv_layout)}
    decode = WHEEL.load(root, f"{package}.decode.block_sizes")
    prefill = WHEEL.load(root, f"{package}.prefill.block_sizes")
    return {
        "decode_block_sizes": decode.BlockSizes(**blocks["decode"]),
        "prefill_block_sizes": prefill.BlockSizes(**blocks["prefill"]),
    }
