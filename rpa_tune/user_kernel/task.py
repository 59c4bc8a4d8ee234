"""What a worker does for a user's kernel: trace, choose the Pallas call, compile, simulate."""

import hashlib
import time
from dataclasses import replace

import numpy as np
from jax.extend import core

from rpa_tune.candidate import Status
from rpa_tune.compile import dumps, target, worker
from rpa_tune.compile.cache import CompileCache, Compiled
from rpa_tune.compile.lower import compile_call
from rpa_tune.errors import DumpError
from rpa_tune.families.family import Call
from rpa_tune.llo.ensemble import load_sets
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.run import MissingOperandError
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.sources import SOURCES_FLAG
from rpa_tune.provenance import versions
from rpa_tune.user_kernel.answer import CallName, KernelAnswer, KernelTask, Refusal
from rpa_tune.user_kernel.find import FoundCall, Unknown
from rpa_tune.user_kernel.load import brief, load_call
from rpa_tune.user_kernel.refused import RefusedError
from rpa_tune.user_kernel.trace import Traced, place_of, pretend, trace


def explain_task(task: KernelTask) -> KernelAnswer | Refusal:
    """Compiles a function and simulates one launch of one of its Pallas calls.

    Raises:
      Exception: What lowering raises.
    """
    try:
        return _explain(task)
    except RefusedError as error:
        return error.refusal


def _explain(task: KernelTask) -> KernelAnswer:
    worker.report_phase("trace")
    function, positional, keywords = load_call(task)
    traced = trace(function, positional, keywords, task.chip)
    call = traced.choose(task.call)
    answer = KernelAnswer(
        status=Status.OK,
        call=_name(call),
        others=tuple(other.name for other in traced.calls if other is not call),
        scalars=call.scalars(),
    )
    compiled = _compile(task, traced, call)
    costs = {
        "lower_s": compiled.lower_s,
        "compile_s": compiled.compile_s,
        "from_cache": compiled.from_cache,
        "vmem_bytes": compiled.vmem_bytes,
        "vmem_spill_bytes": compiled.vmem_spill_bytes,
    }
    answer = replace(
        answer, status=compiled.status, detail=compiled.detail, schedule=compiled.bundles,
        costs=costs,
    )  # fmt: skip
    return _simulate(task, call, answer) if compiled.bundles else answer


def _compile(task: KernelTask, traced: Traced, call: FoundCall) -> Compiled:
    """The compiler's answer, from the cache if this very program was compiled before."""
    cache = CompileCache(task.cache_dir)
    keys: list[str] = []

    def kept(program: str) -> Compiled | None:
        content = (
            program, call.mark, task.chip.name, target.DUMP_FLAGS, SOURCES_FLAG,
            sorted(target.program_settings().items()), sorted(versions().items()),
        )  # fmt: skip
        keys.append(hashlib.sha256(repr(content).encode()).hexdigest())
        return cache.load(keys[0])

    whole = Call(
        function=core.jaxpr_as_fun(traced.program),
        arguments=traced.arguments,
        kernel_name=call.mark,
        context=lambda: pretend(task.chip),
    )
    try:
        compiled = compile_call(whole, task.chip, kept=kept)
    except DumpError as error:
        detail = " ".join(str(error).split())
        return Compiled(status=Status.NOT_UNDERSTOOD, detail=detail)
    except Exception as error:  # Pallas and Mosaic raise many kinds
        raise RefusedError(
            f"the function does not lower for {task.chip.name}: {brief(error)}",
            where=place_of(error), hint="Pallas refuses it: shapes, dtypes or block sizes",
        ) from error  # fmt: skip
    if compiled.from_cache or compiled.status is Status.COMPILE_FAILED:
        return compiled
    return cache.save(keys[0], compiled)


def _simulate(task: KernelTask, call: FoundCall, answer: KernelAnswer) -> KernelAnswer:
    """The answer with one simulated launch."""
    assert answer.schedule is not None
    worker.report_phase("simulate")
    started = time.perf_counter()
    machine, sets = load_machine(task.chip.name), load_sets(task.chip.name)
    schedule = dumps.unpack_bundles(answer.schedule, worker.worker_folder())
    try:
        program = load_program(schedule)
        timeline = simulate(program, machine, answer.scalars, sets=sets)
    except MissingOperandError as error:
        raise _not_known(call, error.index) from error
    except DumpError as error:
        # The file is gone when a person reads this; what is dumped has the same lines.
        detail = " ".join(str(error).split()).replace(str(schedule), "schedule")
        return replace(answer, status=Status.NOT_UNDERSTOOD, detail=detail)
    costs = answer.costs | {"simulate_s": time.perf_counter() - started}
    spaces = {
        index: operand.space
        for index, operand in sorted(program.operands.items())
        if not operand.is_output
    }
    return replace(answer, timeline=timeline, spaces=spaces, costs=costs)


def _not_known(call: FoundCall, index: int) -> RefusedError:
    """What to say of an operand that the scalar program reads and nobody knows."""
    value, shape = call.operands[index], call.shapes[index]
    if isinstance(value, Unknown):
        names = " and ".join(value.sources) or "nothing that was given"
        why = f"whose values depend on {names}"
    else:
        why = f"whose layout in scalar memory is not known: {np.asarray(value.value).dtype}"
    return RefusedError(
        f"the scalar program of {call.name} reads operand {index} ({shape}), {why}",
        where="--shapes",
        hint="the simulator runs the scalar program, so it needs the values: "
        "s32[4](700,90,1,1), --values FILE.npz or --arguments MODULE:FUNCTION",
    )


def _name(call: FoundCall) -> CallName:
    return CallName(
        name=call.name, operands=call.shapes, grid=call.grid, is_in_loop=call.is_in_loop
    )
