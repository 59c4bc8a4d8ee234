"""The Pallas calls of tpu-inference's functions: what to compile, and the scalars of launches.

Neighbours: `families.py` is the half that needs neither jax nor the wheel; `own_choice.py` asks a
function for its own blocks; `functions.py` binds one to a problem.
"""

import functools
from dataclasses import asdict, dataclass, replace
from typing import Any

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.operands import Operands, kept_calls
from rpa_tune.interop.public.tpu_inference import functions
from rpa_tune.interop.public.tpu_inference.package import PACKAGE, WHEEL

_IDLE_BKV_TOKENS, _IDLE_BQ_TOKENS = 256, 16  # blocks of the case that is not tuned: small
_IDLE_MLA_BQ_TOKENS = 1  # a token has up to 128 heads that share their keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """The Pallas calls of a public function that serve some sequences, with their blocks.

    Attributes:
      kernel: `v3`, `hd64`, `batched`, `stacked` or `mla`.
      is_decode: Whether they serve the decode sequences.
      names: `name=` of each call.
      problem: Static shapes and dtypes.
      config: Its blocks.
      chip: Where it runs.
    """

    kernel: str
    is_decode: bool
    names: tuple[str, ...]
    problem: Problem
    config: Any
    chip: Chip


def call(tuned: Tuned) -> Call:
    """The whole public function, to be compiled for the sake of some calls in it.

    Raises:
      UsageError: The function cannot be bound.
    """
    bound = _bind(tuned)
    return Call(
        function=bound.function,
        arguments=bound.arguments,
        kernel_name=tuned.names[0],
        more_names=tuned.names[1:],
        donated=bound.donated,
        context=bound.pretend,
    )


def launches(tuned: Tuned, batch: Batch) -> tuple[Operands, ...]:
    """The int32 arrays that each call reads for a batch, by operand index.

    Sequences of the prefill slot are handed over as mixed ones. What the wheel's code made is kept
    beside the wheel.

    Raises:
      UsageError: The function makes no call of the expected name: the wheel is another one.
    """
    served = replace(batch, num_prefill=0)
    calls = kept_calls(
        WHEEL.root,
        PACKAGE.digest,
        (tuned.kernel, tuned.chip.name, tuned.problem, block_sizes(tuned), None, served),
        lambda: _bind(tuned).pallas_calls(served),
    )
    operands = {one.name: one.operands for one in calls}
    for name in tuned.names:
        if name not in operands:
            raise UsageError(
                f"the public function calls {list(operands)}, not {name}",
                hint=f"rpa-tune supports {PACKAGE.title}",
            )
    return tuple(operands[name] for name in tuned.names)


@functools.lru_cache(maxsize=1)  # it remembers what it compiled for the batch before
def _bind(tuned: Tuned) -> functions.ForeignCall:
    return functions.bind(
        tuned.kernel,
        WHEEL.root,
        chip=tuned.chip,
        problem=tuned.problem,
        blocks=block_sizes(tuned),
    )


def block_sizes(tuned: Tuned) -> Any:
    """The blocks as `functions.bind` takes them; the other case gets small ones."""
    kernel, problem, config = tuned.kernel, tuned.problem, tuned.config
    bkv = layout.align(_IDLE_BKV_TOKENS, problem.page_size)
    if kernel == "hd64":
        return (config.bkv_sz // problem.page_size, config.bq_sz)
    if kernel == "mla":
        case = "decode" if tuned.is_decode else "mixed"
        return idle_mla_blocks(problem) | {case: asdict(config)}
    if kernel == "v3":
        sizes = (config.bq_sz, config.bkv_sz, config.bq_csz, config.bkv_csz)
        if tuned.is_decode:
            return {"d": sizes, "m": (_IDLE_BQ_TOKENS, bkv, _IDLE_BQ_TOKENS, bkv)}
        return {"d": (1, bkv, 1, bkv), "m": sizes}
    idle = {"bkv_sz": bkv, "batch_size": 1, "n_buffer": 2}
    blocks = {
        "decode": {"bq_sz": 1, "bq_c_sz": 1, **idle},
        "prefill": {"bq_sz": _IDLE_BQ_TOKENS, "bq_c_sz": _IDLE_BQ_TOKENS, **idle},
        "decode" if tuned.is_decode else "prefill": asdict(config),
    }
    if kernel == "stacked":
        del blocks["decode"]["bq_c_sz"]
    return blocks


def idle_mla_blocks(problem: Problem) -> dict[str, dict[str, int]]:
    """Small blocks for both cases of the latent kernel."""
    bkv = layout.align(_IDLE_BKV_TOKENS, problem.page_size)
    return {
        "decode": {"bkv_sz": bkv, "batch_size": 1},
        "mixed": {"bq_sz": _IDLE_MLA_BQ_TOKENS, "bkv_sz": bkv, "q_split": 1},
    }
