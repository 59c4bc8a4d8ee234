"""What a worker does for the measured evaluator: check, then time, on a device that is there.

Launches of a group of candidates are interleaved, so that a chip that slows down slows them all.
Every launch gets inputs drawn for it; no output is ever fed back. Neighbours: `measured.py` is the
parent's half, `device_times.py` reads the profiler.
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import inputs
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_kernels.reference import ragged_paged_attention
from rpa_kernels.verify import (
    UNTOUCHED,
    Operands,
    compare,
    draw_operands,
    operand_shapes,
    spoil_unused,
    untouched_lse,
)
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import target, worker
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.device_times import launch_times_ns, read_profile
from rpa_tune.evaluate.measurement import (
    BatchSamples,
    MeasureAnswer,
    Measurement,
    MeasureTask,
    is_steady,
)
from rpa_tune.hw.chip import chip_of_device_kind

# (q, keys, values, cache, four scalar arrays, sinks) -> (prepared output, cache)
Launch = Callable[..., tuple[jax.Array, jax.Array]]
WARM_UP = 3  # launches before any that counts
NUM_INPUTS = 2  # sets of inputs that launches take turns with


def measure(task: MeasureTask) -> MeasureAnswer:
    """Checks each candidate, then times those that are right, side by side.

    Raises:
      Exception: What a kernel raises while it is traced or run.
    """
    try:
        device = jax.devices()[0]
    except RuntimeError as error:  # taken by another process, or lost: no candidate's fault
        return MeasureAnswer(wrong_device=f"jax finds no device: {worker.one_line(str(error))}")
    if wrong := _wrong_device(device, task):
        return MeasureAnswer(wrong_device=wrong)
    make: Callable[[Candidate, Batch], Launch] = worker.resolve(task.launcher)  # type: ignore[assignment]
    found = {c.digest: _check(c, task.check_batches, make) for c in task.candidates}
    right = [c for c in task.candidates if found[c.digest].status is Status.OK]
    samples: dict[str, list[BatchSamples]] = {c.digest: [] for c in right}
    for batch in task.batches if right else ():
        worker.report_phase("measure")
        for candidate, taken in zip(right, _time_batch(right, batch, task, make), strict=True):
            samples[candidate.digest].append(taken)
    return MeasureAnswer(
        device=describe(device),
        measurements=tuple(
            replace(found[c.digest], samples=tuple(samples[c.digest]))
            if c.digest in samples
            else found[c.digest]
            for c in task.candidates
        ),
    )


def find_device(_: None = None) -> dict[str, Any]:
    """What `jax` finds here: `describe` and, for a TPU, the name of its `chip`.

    Raises:
      Exception: jax finds no device, or one that the chip table does not have.
    """
    device = jax.devices()[0]
    is_tpu = device.platform == "tpu"
    chip = chip_of_device_kind(device.device_kind).name if is_tpu else ""
    return {**describe(device), "chip": chip}


def launch_family(candidate: Candidate, batch: Batch) -> Launch:
    """The candidate's own kernel, compiled for the device; the batch is in its arguments."""
    del batch
    return _launch_family(candidate)


@functools.lru_cache(maxsize=32)
def _launch_family(candidate: Candidate) -> Launch:
    """One function a candidate, so that it is compiled once and not for every batch."""
    family, problem = candidate.family, candidate.problem
    chip_target = candidate.chip.target

    def launch(q: Any, k: Any, v: Any, cache: Any, *rest: Any) -> Any:
        prepared, kv_new = inputs.prepare(q, k, v, problem)
        return family.launch(
            prepared, kv_new, cache, *rest[:4],
            problem=problem, config=candidate.config, target=chip_target, sinks=rest[4],
            lse=untouched_lse(problem),
        )  # fmt: skip

    compiled: Launch = jax.jit(launch)
    return compiled


def launch_reference(candidate: Candidate, batch: Batch) -> Launch:
    """The reference in the kernel's place: right on any device, and slow."""
    problem, arrays = candidate.problem, batch.arrays(candidate.problem)
    seqs = batch.family_seqs(candidate.family.name)
    starts = np.concatenate([[0], np.cumsum(batch.q_lens)])
    own = np.zeros(problem.max_num_tokens, bool)
    own[starts[seqs.start] : starts[seqs.stop]] = True

    def launch(q: Any, k: Any, v: Any, cache: Any, *rest: Any) -> Any:
        out, cache, *lse = ragged_paged_attention(
            q, k, v, cache, arrays, problem, sinks=rest[4], seqs=seqs
        )
        attended = inputs.prepare_q(out.astype(problem.q_dtype), problem)
        rows = jnp.asarray(own).reshape(-1, *(1,) * (attended.ndim - 1))
        attended = jnp.where(rows, attended, inputs.prepare_q(q, problem))
        if not lse:
            return attended, cache
        rows = rows.reshape(-1, 1, 1, 1)
        return attended, cache, jnp.where(rows, inputs.prepare_lse(lse[0], problem), UNTOUCHED)

    return launch


def _wrong_device(device: Any, task: MeasureTask) -> str:
    """Why the device is not what the candidates are for; empty when it is."""
    if device.platform != task.platform:
        return f"measuring needs a {task.platform}, but jax found a {device.platform}"
    if task.platform != "tpu":
        return ""
    try:
        chip = chip_of_device_kind(device.device_kind).name
    except UsageError:  # contradicts nobody: whoever asks was told which chip it is
        return ""
    wanted = {candidate.chip.name for candidate in task.candidates} - {chip}
    return f"candidates are for {', '.join(sorted(wanted))}, this is a {chip}" if wanted else ""


def describe(device: Any) -> dict[str, Any]:
    """A device and its host, as an evaluation's provenance has them."""
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_hosts": jax.process_count(),
        "coords": list(getattr(device, "coords", ())),
        "flags": target.program_settings(),
    }


def _check(candidate: Candidate, batches: Sequence[Batch], make: Any) -> Measurement:
    """Compares a candidate with the reference; nothing is timed that is wrong."""
    family, problem = candidate.family, candidate.problem
    compiled: dict[Launch, Launch] = {}  # most make one function for all batches
    worst: float | None = None
    for seed, batch in enumerate(batches):
        operands = draw_operands(problem, batch, seed=seed)
        operands = replace(operands, arrays=spoil_unused(operands.arrays, problem))
        arguments = _arguments(operands)
        # What tracing raises ends the task, whose phase then says that the kernel did not compile.
        worker.report_phase("compile")
        failed = Status.COMPILE_FAILED
        try:
            made = make(candidate, batch)
            if made not in compiled:
                compiled[made] = as_jitted(made).lower(*arguments).compile()
            worker.report_phase("check")
            failed = Status.RUN_FAILED
            found = jax.block_until_ready(compiled[made](*arguments))
        except jax.errors.JaxRuntimeError as error:
            exhausted = str(error).startswith("RESOURCE_EXHAUSTED")
            return Measurement(
                status=Status.OUT_OF_MEMORY if exhausted else failed,
                detail=worker.one_line(str(error)),
            )
        report = compare(family, problem, batch, operands, found)
        if not report.ok:
            return Measurement(
                status=Status.WRONG_ANSWER, detail=f"batch {seed}: {'; '.join(report.problems)}"
            )
        worst = max(worst or 0.0, report.max_error / report.tolerance)
    return Measurement(status=Status.OK, error_of_tolerance=worst)


def as_jitted(launch: Launch) -> Any:
    """A function under `jit`; one that is brings compiler options of its own."""
    return launch if hasattr(launch, "lower") else jax.jit(launch)


def _time_batch(
    candidates: Sequence[Candidate], batch: Batch, task: MeasureTask, make: Any
) -> list[BatchSamples]:
    """Rounds of interleaved launches, until one is steady for all or rounds run out."""
    problem = candidates[0].problem
    launches = [as_jitted(make(candidate, batch)) for candidate in candidates]
    drawn = [_draw_on_device(problem, batch, seed) for seed in range(NUM_INPUTS)]
    for launch in launches:
        for i in range(WARM_UP):
            jax.block_until_ready(launch(*drawn[i % NUM_INPUTS]))
    rounds: list[list[tuple[float, ...]]] = [[] for _ in candidates]
    for _ in range(task.max_rounds):
        taken = _run_round(candidates, launches, drawn, task.num_repeats)
        for kept, times in zip(rounds, taken, strict=True):
            kept.append(times)
        if all(is_steady(times) for times in taken):
            break
    return [BatchSamples(rounds_ns=tuple(kept), is_steady=is_steady(kept[-1])) for kept in rounds]


def _run_round(
    candidates: Sequence[Candidate],
    launches: Sequence[Launch],
    drawn: Sequence[tuple[Any, ...]],
    num_repeats: int,
) -> list[tuple[float, ...]]:
    """One profile of every launch `num_repeats` times: times of each candidate.

    Launches take turns, and each turn begins with another one, so that none always follows the
    same neighbour.
    """
    with tempfile.TemporaryDirectory(dir=worker.worker_folder()) as folder:
        with jax.profiler.trace(folder, profiler_options=_profiler_options()):
            for i in range(num_repeats):
                for turn in range(len(launches)):
                    number = (i + turn) % len(launches)
                    with jax.profiler.TraceAnnotation(_annotation(number)):
                        jax.block_until_ready(launches[number](*drawn[i % NUM_INPUTS]))
        profile = read_profile(Path(folder))
        times = [
            tuple(launch_times_ns(profile, _annotation(number), _kernel_name(candidate)))
            for number, candidate in enumerate(candidates)
        ]
    for candidate, taken in zip(candidates, times, strict=True):
        if len(taken) != num_repeats:
            raise RuntimeError(
                f"profile shows {len(taken)} of {num_repeats} launches of {_kernel_name(candidate)}"
            )
    return times


def _profiler_options() -> Any:
    """Annotations and device events, but no Python frames, which cost time and say nothing."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def _annotation(number: int) -> str:
    return f"rpa launch {number}"


def _kernel_name(candidate: Candidate) -> str:
    return candidate.family.kernel_name(candidate.problem, candidate.config)


def _arguments(operands: Operands) -> tuple[Any, ...]:
    """Operands in the order of a `Launch`."""
    arrays = operands.arrays
    scalars = (arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution)
    return (
        operands.queries, operands.keys, operands.values, operands.kv_cache,
        *map(jnp.asarray, scalars), operands.sinks,
    )  # fmt: skip


def _draw_on_device(problem: Problem, batch: Batch, seed: int) -> tuple[Any, ...]:
    """Random operands made on the device: drawing a cache of gigabytes on the host takes long."""
    keys = jax.random.split(jax.random.key(seed), 5)

    def normal(key: Any, shape: tuple[int, ...], dtype: str) -> jax.Array:
        if dtype == "int8":
            return jax.random.randint(key, shape, -127, 128, jnp.int8)
        return jax.random.normal(key, shape, jnp.bfloat16).astype(dtype)

    q_shape, k_shape, v_shape = operand_shapes(problem)
    operands = Operands(
        queries=normal(keys[0], q_shape, problem.q_dtype),
        keys=normal(keys[1], k_shape, problem.kv_dtype),
        values=normal(keys[2], v_shape, problem.kv_dtype),
        kv_cache=normal(keys[3], problem.kv_cache_shape, problem.kv_dtype),
        sinks=jax.random.normal(keys[4], (problem.num_q_heads,)) if problem.has_sinks else None,
        arrays=batch.arrays(problem),
    )
    return _arguments(operands)
