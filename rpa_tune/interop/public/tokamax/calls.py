"""The Pallas calls of tokamax's function: what to compile, and the scalars of a launch.

The function makes a schedule for each of three cases and runs its kernel over it. A schedule is
written to HBM and brought to SMEM in windows; what is longer than all of them is lost.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.launches import Recorder, ScheduleTooLongError
from rpa_tune.interop.public.operands import Operands, kept_calls
from rpa_tune.interop.public.tokamax.configs import kernel_name
from rpa_tune.interop.public.tokamax.package import PACKAGE, WHEEL

_PACKAGE = "tokamax._src.ops.batched_rpa.kernel"
# Parameters that this adapter relies on; a signature without them has drifted.
_LEADING = (
    "queries", "keys", "values", "kv_cache", "kv_lens", "page_indices", "cu_q_lens",
    "distribution",
)  # fmt: skip
_REQUIRED = {
    "sm_scale", "sliding_window", "soft_cap", "q_scale", "k_scale", "v_scale", "kv_layout",
    "decode_block_sizes", "prefill_block_sizes", "vmem_limit_bytes",
}  # fmt: skip
_IDLE_BKV_TOKENS, _IDLE_BQ_TOKENS = 256, 16  # blocks of the case that is not tuned: small
_FIRST_OF_SCHEDULE = 5  # operand: behind query and KV lengths, offsets, and page indices


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bound:
    """The public function with a problem and blocks.

    Attributes:
      function: Takes the eight arrays of the call.
      arguments: Abstract arrays for it.
      context: Where it may be traced.
    """

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    context: Callable[[], contextlib.AbstractContextManager[None]]


def call(case: str, problem: Problem, config: BatchedConfig, chip: Chip) -> Call:
    """The whole public function, to be compiled for the sake of one call in it.

    Raises:
      UsageError: The function has drifted.
    """
    bound = bind(problem, blocks_of(case, problem, config), chip)
    return Call(
        function=bound.function,
        arguments=bound.arguments,
        kernel_name=kernel_name(case[0], problem, config),
        donated=(3,),
        context=bound.context,
    )


def scalar_operands(
    case: str, problem: Problem, config: BatchedConfig, chip: Chip, batch: Batch
) -> Operands:
    """The int32 arrays that the call reads for a batch, by operand index.

    Sequences of the prefill slot are handed over as mixed ones. What the wheel's code made is kept
    beside the wheel.

    Raises:
      UsageError: The function makes no call of the expected name: the wheel is another one.
      ScheduleTooLongError: The function would drop work.
    """
    served = replace(batch, num_prefill=0)
    blocks = blocks_of(case, problem, config)
    calls = kept_calls(
        WHEEL.root,
        PACKAGE.digest,
        (chip.name, problem, blocks, served),
        lambda: _recorder(case, problem, config, chip).calls(problem, served),
    )
    wanted = kernel_name(case[0], problem, config)
    for one in calls:
        if one.name == wanted:
            check_schedule(one.operands)
            return one.operands
    raise UsageError(
        f"the public function calls {[one.name for one in calls]}, not {wanted}",
        hint=f"rpa-tune supports {PACKAGE.title}",
    )


def check_schedule(operands: Operands) -> None:
    """Refuses a schedule of more steps than its arrays hold: the kernel has no such check.

    Raises:
      ScheduleTooLongError: It is.
    """
    arrays = [array for i, array in operands.items() if i >= _FIRST_OF_SCHEDULE]
    num_steps = max(int(array[0]) for array in arrays if array.size == 1)
    room = min(array.size for array in arrays if array.size > 1)
    if num_steps > room:
        raise ScheduleTooLongError(f"its schedule has {num_steps:,} steps, and room for {room:,}")


def blocks_of(case: str, problem: Problem, config: BatchedConfig) -> dict[str, BatchedConfig]:
    """The blocks of both cases; the one that is not tuned gets small ones."""
    bkv = layout.align(_IDLE_BKV_TOKENS, problem.page_size)
    idle = BatchedConfig(bq_sz=1, bq_c_sz=1, bkv_sz=bkv, batch_size=1, n_buffer=2)
    if case == "decode":
        return {
            "decode": config,
            "prefill": replace(idle, bq_sz=_IDLE_BQ_TOKENS, bq_c_sz=_IDLE_BQ_TOKENS),
        }
    return {"decode": idle, "prefill": config}


@functools.lru_cache(maxsize=1)  # it remembers what it compiled for the batch before
def _recorder(case: str, problem: Problem, config: BatchedConfig, chip: Chip) -> Recorder:
    bound = bind(problem, blocks_of(case, problem, config), chip)
    return Recorder(bound.function, bound.arguments, bound.context)


def bind(problem: Problem, blocks: dict[str, BatchedConfig], chip: Chip) -> Bound:
    """Binds the public function to a problem and the blocks of both cases.

    Raises:
      UsageError: Its signature has drifted.
    """
    wrapper: Any = WHEEL.load(WHEEL.root, f"{_PACKAGE}.wrapper")
    configs: Any = WHEEL.load(WHEEL.root, f"{_PACKAGE}.configs")
    function = wrapper.ragged_paged_attention
    check_signature(function)
    sizes = {
        f"{case}_block_sizes": configs.BlockSizes(**asdict(fields))
        for case, fields in blocks.items()
    }
    return Bound(
        function=functools.partial(
            function,
            sm_scale=problem.sm_scale,
            sliding_window=problem.sliding_window,
            soft_cap=problem.soft_cap,
            q_scale=problem.q_scale,
            k_scale=problem.k_scale,
            v_scale=problem.v_scale,
            vmem_limit_bytes=chip.vmem_bytes,
            kv_layout=configs.KVLayout.HEAD_ALONG_SUBLANE,
            **sizes,
        ),
        arguments=_abstract_arguments(problem),
        context=functools.partial(pretend, chip),
    )


def check_signature(function: Callable[..., Any]) -> None:
    """Refuses a function whose signature has drifted.

    Raises:
      UsageError: The leading arrays or the options that this adapter relies on are not there.
    """
    names = list(inspect.signature(function).parameters)
    missing = sorted(_REQUIRED - set(names))
    if tuple(names[: len(_LEADING)]) != _LEADING or missing:
        raise UsageError(
            f"the signature of tokamax's kernel has drifted: missing {missing}, "
            f"leading parameters {names[: len(_LEADING)]}",
            hint=f"rpa-tune supports {PACKAGE.title}",
        )


@contextlib.contextmanager
def pretend(chip: Chip) -> Iterator[None]:
    """Answers the wheel's questions about the chip with `chip`."""
    device = AbstractDevice(device_kind=chip.device_kinds[0], num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield


def _abstract_arguments(problem: Problem) -> tuple[jax.ShapeDtypeStruct, ...]:
    tokens, seqs = problem.max_num_tokens, problem.max_num_seqs
    new = (tokens, problem.num_kv_heads, problem.head_dim)
    pack = layout.packing(problem.kv_dtype)
    # K and V of a head are two rows, padded to whole words and whole lanes, whatever the head size.
    rows = layout.align(2 * problem.num_kv_heads, pack) // pack
    lanes = layout.align(problem.head_dim, layout.LANES)
    shapes: list[tuple[tuple[int, ...], str]] = [
        ((tokens, problem.num_q_heads, problem.head_dim), problem.q_dtype),
        (new, problem.kv_dtype),
        (new, problem.kv_dtype),
        ((problem.num_pages, problem.page_size, rows, pack, lanes), problem.kv_dtype),
        ((seqs,), "int32"),
        ((seqs * problem.pages_per_seq,), "int32"),
        ((seqs + 1,), "int32"),
        ((3,), "int32"),
    ]
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in shapes)
