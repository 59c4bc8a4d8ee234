"""Candidate → schedule, in a worker process: trace, lower, compile, find the dump.

What is compiled the family says (`Family.call`). Runs only where `target.worker_environment` was
set before jax was imported; the parent side is `pool.py`.
"""

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax

from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import dumps, target, worker
from rpa_tune.compile.cache import CompileCache, Compiled, compile_key, program_key
from rpa_tune.errors import DumpError
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import Chip
from rpa_tune.libtpu_args import args_here, difference

# The three ways in which the compiler says that memory ran out.
# Source: messages of libtpu 0.0.42.1 and 0.0.50.1.
_OUT_OF_MEMORY = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"in memory space (?P<space>\w+)\b.*?Used (?P<need>[\d.]+\w?) of (?P<have>[\d.]+\w?)",
        r"allocation with size (?P<need>[\d.]+\w?) and limit (?P<have>[\d.]+\w?) "
        r"exceeded scoped (?P<space>\w+) limit",
        r"Allocation \(size=(?P<need>\d+)\) would exceed memory \(size=(?P<have>\d+)\)"
        r".*?space=(?P<space>\w+)",
    )
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_FULL_DISK_BYTES = 1 << 20  # less free space than this explains a dump that is missing or torn


def compile_candidate(candidate: Candidate, cache: CompileCache) -> tuple[Compiled, ...]:
    """Compiles a candidate, or finds that it was compiled before.

    Args:
      candidate: Its workload plays no part.
      cache: Where answers are kept. If one cannot be kept it is returned all the same, with the
        reason in `not_cached`.

    Returns:
      What the compiler says about each of the family's `kernel_names`.

    Raises:
      DumpError: The compiler was content, but its schedule is missing.
      RuntimeError: This worker's libtpu has other flags than the candidate.
      Exception: What the kernel's Python code raises while it is traced.
    """
    if other := difference(candidate.libtpu_args, args_here()):
        raise RuntimeError(f"a candidate {other}")
    names = candidate.family.kernel_names(candidate.problem, candidate.config)
    settings = target.program_settings(candidate.libtpu_args)
    keys = [compile_key(candidate, settings, name) for name in names]
    if known := _load_all(cache, keys):
        return known
    programs: list[str] = []

    def kept(program: str) -> Compiled | None:
        """The answer to this very program, made from other sources; None unless all are there."""
        programs[:] = (program_key(program, candidate, settings, name) for name in names)
        return next(iter(_load_all(cache, programs)), None)

    call = candidate.family.call(candidate.problem, candidate.config, candidate.chip)
    compiled = compile_call(call, candidate.chip, kept=kept)
    each = _load_all(cache, programs) if compiled.from_cache else ()
    each = each or (compiled, *(_named(compiled, name) for name in call.more_names))
    if compiled.status is Status.COMPILE_FAILED:
        return each
    return tuple(
        _keep(cache, key, program, one)
        for key, program, one in zip(keys, programs, each, strict=True)
    )


def _load_all(cache: CompileCache, keys: Sequence[str]) -> tuple[Compiled, ...]:
    """The kept answers; none unless all are there."""
    found = [one for key in keys if (one := cache.load(key)) is not None]
    return tuple(found) if len(found) == len(keys) else ()


def _named(compiled: Compiled, name: str) -> Compiled:
    """The same compile, with the schedule of another of its Pallas calls."""
    if compiled.bundles is None:
        return replace(compiled, kernel_name=name)
    folder = target.dump_folder(worker.worker_folder())
    return replace(compiled, kernel_name=name, bundles=dumps.find_bundles(folder, name))


def _keep(cache: CompileCache, key: str, program: str, compiled: Compiled) -> Compiled:
    """Keeps an answer under its program, which the key of the sources then refers to."""
    try:
        kept = compiled if compiled.from_cache else cache.save(program, compiled)
        cache.refer(key, program)
    except OSError as error:
        return replace(compiled, not_cached=f"{error.strerror}: {error.filename}")
    return kept


def compile_call(
    call: Call, chip: Chip, *, kept: Callable[[str], Compiled | None] | None = None
) -> Compiled:
    """Compiles a call for a chip that is not there, and finds its schedule.

    Args:
      call: What to compile.
      chip: Where it would run.
      kept: From the lowered program's text to what is known of it, which is then not compiled.

    Raises:
      DumpError: The schedule is missing.
      Exception: What tracing raises.
    """
    folder = target.dump_folder(worker.worker_folder())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sharding = jax.sharding.SingleDeviceSharding(target.device_free_device(chip))
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in call.arguments]
    started = time.perf_counter()
    worker.report_phase("lower")
    with call.context():
        lowered = jax.jit(call.function, donate_argnums=call.donated).lower(*arguments)
        lower_s = time.perf_counter() - started
        if kept is not None and (known := kept(lowered.as_text())) is not None:
            return known
        worker.report_phase("compile")
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return replace(_refusal(str(error)), kernel_name=call.kernel_name, lower_s=lower_s)
    compile_s = time.perf_counter() - started - lower_s
    try:
        vmem = dumps.read_vmem_report(folder, call.kernel_name)
        bundles = dumps.find_bundles(folder, call.kernel_name)
    except DumpError as error:
        raise _explain_full_disk(error, folder) from error
    memory = executable.memory_analysis()
    return Compiled(
        status=Status.OK,
        kernel_name=call.kernel_name,
        bundles=bundles,
        lower_s=lower_s,
        compile_s=compile_s,
        vmem_bytes=vmem.total_bytes if vmem else None,
        vmem_spill_bytes=vmem.spill_bytes if vmem else None,
        hbm_allocated_bytes=None
        if memory is None
        else memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    )


def serialize_call(call: Call, chip: Chip) -> bytes | Compiled:
    """The executable of a call for a chip that is not there, for a host that has the chip.

    Every argument is kept, used or not, so that its caller need not know which are. For a
    worker process: what is traced afterwards says no more where it comes from.

    Returns:
      What the client's `deserialize_executable` loads, or the compiler's refusal.

    Raises:
      Exception: What tracing raises.
    """
    sharding = jax.sharding.SingleDeviceSharding(target.device_free_device(chip))
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in call.arguments]
    worker.report_phase("lower")
    function = jax.jit(call.function, donate_argnums=call.donated, keep_unused=True)
    # No source locations: they would put this machine's paths into the executable.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    with call.context():
        lowered = function.lower(*arguments)
        worker.report_phase("compile")
        try:
            executable = lowered.compile().runtime_executable()
        except jax.errors.JaxRuntimeError as error:
            return _refusal(str(error))
    assert executable is not None  # jax's type says it may be, for programs without one
    num_parameters = len(executable.get_parameter_layouts())
    if num_parameters != len(arguments):
        # Constants that jax hands over as hidden arguments: the loader would not know them.
        raise AssertionError(f"{num_parameters} parameters for {len(arguments)} arguments")
    content: bytes = executable.serialize()
    return content


def _refusal(message: str) -> Compiled:
    """Tells what did not fit from what did not compile."""
    for pattern in _OUT_OF_MEMORY:
        if found := pattern.search(message):
            need, have = _parse_size(found["need"]), _parse_size(found["have"])
            return Compiled(
                status=Status.OUT_OF_MEMORY,
                detail=f"{found['space']}: the compiler needs {need:,} bytes, have {have:,}",
            )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    exhausted = message.startswith("RESOURCE_EXHAUSTED")
    return Compiled(
        status=Status.OUT_OF_MEMORY if exhausted else Status.COMPILE_FAILED,
        detail=" ".join(lines[:2]) if lines else "the compiler gave no reason",
    )


def _parse_size(text: str) -> int:
    """Bytes of `288.22M`, `131072` and the like."""
    number = text.rstrip("KMG")
    return round(float(number) * _UNITS[text[len(number) :]])


def _explain_full_disk(error: DumpError, folder: Path) -> DumpError:
    """The same error, with its likely cause when the disk is full."""
    if shutil.disk_usage(folder).free >= _FULL_DISK_BYTES:
        return error
    return dumps.DiskFullError(
        f"no space left on the disk of {folder}: {error.args[0]}",
        where=error.where,
        hint="free some space, or point the temporary folder elsewhere",
    )
