"""The public RPA kernels of tpu-inference as candidates: v3, hd64, batched and stacked.

Each adapter says what to call, with which abstract arguments, and which arrays the kernels
read on their scalar side for a batch, so that a foreign kernel is compiled and simulated just
like ours. Block sizes and the VMEM limit are always explicit: off a TPU the public functions
cannot look them up.
"""

import concurrent.futures
import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import Chip
from rpa_tune.interop import wheel
from rpa_tune.public_kernels import DEVICE_NAMES

KERNELS = "tpu_inference.kernels"
MODULES = {
    "v3": f"{KERNELS}.ragged_paged_attention.v3.kernel",
    "hd64": f"{KERNELS}.ragged_paged_attention.v3.kernel_hd64",
    "batched": f"{KERNELS}.experimental.batched_rpa.wrapper",
    "stacked": f"{KERNELS}.experimental.stacked_rpa.wrapper",
}
FUNCTIONS = {"hd64": "ragged_paged_attention_hd64"}  # the others: ragged_paged_attention
GENERATION = {"v5e": 5, "v5p": 5, "v6e": 6, "v7x": 7}  # v4 is refused by the public kernels

# Share of SMEM that these kernels are told. Told all of it, they leave 32 or 256 KiB beside their
# schedule, and libtpu 0.0.42.1 then spills scalars to HBM: 2 to 20 times slower in simulation.
SMEM_SHARE = {MODULES["batched"]: 0.5, MODULES["stacked"]: 0.75}

# Parameters that an adapter relies on; a signature without them has drifted.
LEADING = (
    "queries", "keys", "values", "kv_cache", "kv_lens", "page_indices", "cu_q_lens",
    "distribution",
)  # fmt: skip
REQUIRED = {
    "v3": {"d_block_sizes", "m_block_sizes", "vmem_limit_bytes", "sliding_window", "sm_scale"},
    "hd64": {"num_kv_pages_per_block", "num_queries_per_block", "vmem_limit_bytes"},
    "batched": {"decode_block_sizes", "prefill_block_sizes", "vmem_limit_bytes", "kv_layout"},
    "stacked": {"decode_block_sizes", "prefill_block_sizes", "vmem_limit_bytes"},
}

_CHECK_NUMBER = re.compile(r"(?<=select_n False:bool\[\] )\d+(?=:i32\[\] -1:i32\[\])")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PallasCall:
    """One `pallas_call` that a foreign function makes.

    Attributes:
      name: The `name=` of the call, found again in compiler dumps.
      operands: int32 arrays the kernel reads as scalars, by operand index.
    """

    name: str
    operands: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ForeignCall:
    """A public attention function bound to a problem and its block sizes.

    Attributes:
      kernel: `v3`, `hd64`, `batched` or `stacked`.
      chip: The chip to compile for.
      problem: Static shapes and dtypes.
      function: The bound public function; takes the eight arrays of `LEADING`, then sinks if
        the problem has them (hd64 only).
      arguments: Abstract arrays for `function`.
      module: The wheel's module, patched by `pretend`.
      smem_share: Share of SMEM that the function is told.
      metadata: The compiled metadata launches that `pallas_calls` has met, by program text.
    """

    kernel: str
    chip: Chip
    problem: Problem
    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    module: Any
    smem_share: float
    metadata: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict, repr=False)

    def pretend(self) -> contextlib.AbstractContextManager[None]:
        """Where the function may be traced; see `pretend`."""
        return pretend(self.chip, self.module, self.smem_share)

    def pallas_calls(self, batch: Batch) -> tuple[PallasCall, ...]:
        """What the function launches for `batch`, with the scalars each launch reads.

        Runs the wrapper's own metadata code on the CPU, with every `pallas_call` replaced by a
        recorder; no kernel runs.
        """
        calls: list[PallasCall] = []
        arrays = batch.arrays(self.problem)
        scalars = [
            jnp.asarray(a)
            for a in (arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution)
        ]

        def call(*arrays: Any) -> None:
            with jax.ensure_compile_time_eval():
                self.function(*arrays[:4], *scalars, *arrays[4:])

        with (
            self.pretend(),
            jax.disable_jit(),
            mock.patch.object(pl, "pallas_call", _recorder(calls, self)),
            mock.patch.object(pltpu, "with_memory_space_constraint", lambda x, _: x),
        ):
            jax.eval_shape(call, *self.arguments[:4], *self.arguments[len(LEADING) :])
        return tuple(calls)


def _interpreter(kernel: str) -> Any:
    # The plain interpreter is ten times faster, but refuses the batched kernel's dynamic slices.
    return True if kernel == "stacked" else pltpu.InterpretParams()


def _recorder(calls: list[PallasCall], call: ForeignCall) -> Callable[..., Any]:
    """A stand-in for `pl.pallas_call` that appends what it would have launched to `calls`.

    A launch whose arrays are all known is metadata for a later one: it is run under the
    interpreter. The others return abstract arrays.
    """
    real = pl.pallas_call

    def record(kernel: Any, *args: Any, **options: Any) -> Any:
        def run(*arrays: Any) -> Any:
            leaves = jax.tree.leaves(arrays)
            if not any(isinstance(array, jax.core.Tracer) for array in leaves):

                def interpret() -> Any:
                    with call.pretend():
                        return _interpret(call, partial(real, kernel, *args, **options), arrays)

                # A thread of its own has jax's tracing state as at the start: jit is on again.
                with concurrent.futures.ThreadPoolExecutor(1) as thread:
                    return thread.submit(interpret).result()
            # A grid size that is an array becomes an operand, before the others.
            grid = options["grid_spec"].grid if "grid_spec" in options else ()
            sizes = [jnp.asarray(size)[None] for size in grid if not isinstance(size, int)]
            found = {
                i: np.asarray(array)
                for i, array in enumerate([*sizes, *leaves])
                if not isinstance(array, jax.core.Tracer) and array.dtype == jnp.int32
            }
            calls.append(PallasCall(name=options["name"], operands=found))
            # Results derived from a traced array stay abstract: nothing of their size is made.
            seed = next(x for x in leaves if isinstance(x, jax.core.Tracer)).reshape(-1)[0]
            return jax.tree.map(
                lambda s: jnp.broadcast_to(seed.astype(s.dtype), s.shape), options["out_shape"]
            )

        return run

    return record


def _interpret(call: ForeignCall, launch: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    """Runs a metadata launch; a program that was met before is not compiled again."""
    # `pl.debug_check` numbers its checks through the life of the process: 1 in the first trace of
    # a kernel, 5 in the third. The number is no part of the program.
    program = _CHECK_NUMBER.sub("", str(jax.make_jaxpr(launch())(*arrays)))
    if program not in call.metadata:
        call.metadata[program] = jax.jit(launch(interpret=_interpreter(call.kernel)))
    return call.metadata[program](*arrays)


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


def bind(kernel: str, root: Path, *, chip: Chip, problem: Problem, blocks: Any) -> ForeignCall:
    """Binds a public function to a problem and block sizes.

    Args:
      kernel: One of `MODULES`.
      root: Folder of the unpacked wheel; see `wheel.fetch_wheel`.
      chip: The chip to compile for; not v4.
      problem: Static shapes and dtypes.
      blocks: v3: `{"d": 4-tuple, "m": 4-tuple}` of (bq_sz, bkv_sz, bq_csz, bkv_csz) in tokens;
        hd64: (pages, queries); batched and stacked: `{"decode": {...}, "prefill": {...}}` with
        the fields of the public BlockSizes; None: what the function chooses itself.

    Raises:
      UsageError: An unknown kernel, a chip the public kernels refuse, or a drifted signature.
    """
    if kernel not in MODULES:
        raise UsageError(f"unknown public kernel {kernel!r}", hint=f"one of {sorted(MODULES)}")
    if chip.name not in GENERATION:
        raise UsageError(f"the public kernels refuse {chip.name}")
    if problem.has_sinks and kernel != "hd64":
        raise UsageError(f"the public {kernel} kernel has no attention sinks")
    module = wheel.load_module(root, MODULES[kernel])
    function = getattr(module, FUNCTIONS.get(kernel, "ragged_paged_attention"))
    check_signature(kernel, function)
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

    arguments = _abstract_arguments(kernel, problem)
    return ForeignCall(
        kernel=kernel,
        chip=chip,
        problem=problem,
        function=bound,
        arguments=arguments,
        module=module,
        smem_share=_smem_share(
            (kernel, str(root), chip.name, problem, repr(blocks)), chip, module, bound, arguments
        ),
    )


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
    names = list(inspect.signature(function).parameters)
    missing = sorted(REQUIRED[kernel] - set(names))
    if tuple(names[: len(LEADING)]) != LEADING or missing:
        raise UsageError(
            f"the signature of tpu-inference's {kernel} kernel has drifted: missing {missing}, "
            f"leading parameters {names[: len(LEADING)]}",
            hint=f"rpa-tune knows tpu-inference {wheel.VERSION}",
        )


def choose_hd64(root: Path, chip: Chip, problem: Problem) -> tuple[int, int]:
    """(pages, queries) of the hd64 kernel: a row of the public table, or its default for the chip.

    The function looks them up itself, but by the name of a device that is not there.
    """
    name = MODULES["hd64"].rsplit(".", 1)[0] + ".tuned_block_sizes_hd64"
    module: Any = wheel.load_module(root, name)
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


def _block_options(
    kernel: str, root: Path, chip: Chip, problem: Problem, blocks: Any
) -> dict[str, Any]:
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
        configs = wheel.load_module(root, f"{package}.configs")
        sizes = {
            f"{case}_block_sizes": configs.BlockSizes(**fields)
            for case, fields in (blocks or {}).items()
        }
        return {**sizes, "kv_layout": configs.KVLayout.HEAD_ALONG_SUBLANE}
    decode = wheel.load_module(root, f"{package}.decode.block_sizes")
    prefill = wheel.load_module(root, f"{package}.prefill.block_sizes")
    return {
        "decode_block_sizes": decode.BlockSizes(**blocks["decode"]),
        "prefill_block_sizes": prefill.BlockSizes(**blocks["prefill"]),
    }


def _cache_shape(kernel: str, problem: Problem) -> tuple[int, ...]:
    pack = layout.packing(problem.kv_dtype)
    if kernel == "hd64":
        heads = layout.cdiv(problem.num_kv_heads, pack)
        return (problem.num_pages, problem.page_size, heads, pack, layout.LANES)
    if kernel == "stacked":
        rows = layout.align(problem.head_dim, layout.SUBLANES * pack)
        return (problem.num_pages, 2 * problem.num_kv_heads, rows, problem.page_size)
    return layout.kv_cache_shape(
        num_pages=problem.num_pages,
        page_size=problem.page_size,
        num_kv_heads=problem.num_kv_heads,
        head_dim=problem.head_dim,
        kv_dtype=problem.kv_dtype,
    )


def _abstract_arguments(kernel: str, problem: Problem) -> tuple[jax.ShapeDtypeStruct, ...]:
    tokens, seqs = problem.max_num_tokens, problem.max_num_seqs
    new = (tokens, problem.num_kv_heads, problem.head_dim)
    shapes: list[tuple[tuple[int, ...], str]] = [
        ((tokens, problem.num_q_heads, problem.head_dim), problem.q_dtype),
        (new, problem.kv_dtype),
        (new, problem.kv_dtype),
        (_cache_shape(kernel, problem), problem.kv_dtype),
        ((seqs,), "int32"),
        ((seqs * problem.pages_per_seq,), "int32"),
        ((seqs + 1,), "int32"),
        ((3,), "int32"),
    ]
    if problem.has_sinks:
        shapes.append(((problem.num_q_heads,), "float32"))
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
