"""Public kernels in the ordinary sweep: their compile, their scalars.

Neighbours: `public_kernels.py` is the half that needs neither jax nor the wheel; `own_choice.py`
asks a function for its own blocks;
`evaluate/simulate_task.py` calls this one in a worker when a candidate's family is public.
"""

import functools
from dataclasses import asdict, replace
from typing import Any

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import Compiled
from rpa_tune.compile.lower import Call, compile_call
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import tpu_inference, wheel
from rpa_tune.interop.operands import Operands, kept_calls
from rpa_tune.public_kernels import PUBLIC_FAMILIES

_IDLE_BKV_TOKENS, _IDLE_BQ_TOKENS = 256, 16  # blocks of the case that is not tuned: small


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
        hint=f"rpa-tune supports tpu-inference {wheel.VERSION}",
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
