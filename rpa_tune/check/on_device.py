"""What a check's worker processes do: ask the device, launch, build and run an artefact.

Parents never import this module: a chip belongs to one process, and that is the worker. In a
rehearsal a CPU is the device. Kernels do not compile for one, so they are interpreted where it is
asked whether they are right, and the float32 reference takes their place elsewhere.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import FAMILIES, inputs, load_family, reference
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_kernels.verify import draw_operands, untouched_lse
from rpa_kernels.watch import interpreter
from rpa_tune.artifact.build import Built, compile_plan, write_built
from rpa_tune.artifact.compiled import CompiledPlans, mismatches
from rpa_tune.artifact.file import Artifact
from rpa_tune.candidate import Candidate
from rpa_tune.check.artifact_task import ArtifactTask, BuiltArtifact, RunArtifact
from rpa_tune.compile import worker
from rpa_tune.dispatch.call import Arrays
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.dispatch.runtime import attend
from rpa_tune.errors import ArtifactError, UsageError
from rpa_tune.evaluate.measure_task import describe, find_device
from rpa_tune.families.own_call import abstract_inputs
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.tables.reader import load_tables, shipped_folder
from rpa_tune.tables.step import Step

PROBLEM = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=64, max_num_seqs=8,
    pages_per_seq=16, num_pages=64, sm_scale=128**-0.5,
)  # fmt: skip
BATCH = Batch(q_lens=(1, 1, 1, 40, 7), kv_lens=(1, 129, 2048, 700, 7), num_decode=3)


def inspect(_: None = None) -> dict[str, Any]:
    """What `find_device` says, with what the package runs on imported; any device will do.

    Returns:
      As there, and: `chip`, empty for a CPU and for a TPU of an unknown kind; `hbm_bytes` of the
      first device, None where it does not say.

    Raises:
      Exception: jax finds no device.
    """
    for family in FAMILIES:
        load_family(family)
    device = jax.devices()[0]
    try:
        found = find_device()
    except UsageError:  # of an unknown kind
        found = {**describe(device), "chip": ""}
    stats = device.memory_stats() or {}
    return {**found, "hbm_bytes": stats.get("bytes_limit")}


def launch_interpreted(candidate: Candidate, batch: Batch) -> Callable[..., Any]:
    """The candidate's kernel under the TPU interpreter, jitted: for a CPU."""
    del batch
    return _launch_interpreted(candidate)


@functools.lru_cache(maxsize=1)  # the batches of a candidate come one after the other
def _launch_interpreted(candidate: Candidate) -> Callable[..., Any]:
    family, problem = candidate.family, candidate.problem
    target = candidate.chip.target
    interpret = interpreter("on_wait", target.num_cores)

    def launch(q: Any, k: Any, v: Any, cache: Any, *rest: Any) -> Any:
        prepared, kv_new = inputs.prepare(q, k, v, problem)
        return family.launch(
            prepared, kv_new, cache, *rest[:4], problem=problem, config=candidate.config,
            target=target, interpret=interpret, sinks=rest[4], lse=untouched_lse(problem),
        )  # fmt: skip

    compiled: Callable[..., Any] = jax.jit(launch, compiler_options=reference.EXACT_ROUNDING)
    return compiled


def build(task: ArtifactTask) -> BuiltArtifact:
    """Compiles the plan of one step and writes its artefact, without the device.

    Raises:
      ArtifactError: The compiler refused, or the file cannot be written.
    """
    chip, plan = _chip(task), _plan(task.chip)
    if task.is_rehearsal:
        content, reason = _serialize_stand_in(plan), ""
    else:
        content, reason = compile_plan(plan)
    if not content:
        raise ArtifactError(f"the plan does not compile: {reason}")
    _, sha256 = write_built(task.path, chip, [Built(plan=plan, content=content)])
    return BuiltArtifact(families=plan.families, sha256=sha256, num_bytes=task.path.stat().st_size)


def run(task: ArtifactTask) -> RunArtifact:
    """Loads an artefact as a server does, runs it, and the jitted call beside it.

    Raises:
      ArtifactError: It is damaged or not for this host, or its executable does not run.
    """
    chip, plan = _chip(task), _plan(task.chip)
    opened = Artifact(task.path, sha256=task.sha256)
    if wrong := mismatches(opened.manifest, chip, jax.devices()[0]):
        raise ArtifactError(f"not for this host: {'; '.join(wrong)}")
    worker.report_phase("load")
    said = _Said()
    logger = logging.getLogger("rpa_tune.dispatch")
    logger.addHandler(said)
    try:
        # Drawn anew for each: a call takes the memory of its queries and of its cache.
        found = CompiledPlans(opened, chip.target).run(plan, _arguments(plan.problem))
    finally:
        logger.removeHandler(said)
    if found is None:
        raise ArtifactError(f"its executable does not run: {'; '.join(said.lines)}")
    out, cache = jax.block_until_ready(found)
    worker.report_phase("compile")
    wanted, wanted_cache = jax.block_until_ready(_jitted(plan, is_rehearsal=task.is_rehearsal))
    return RunArtifact(
        output_bytes=out.nbytes,
        output_bytes_changed=int((_bits(out) != _bits(wanted)).sum()),
        cache_bytes_changed=int((_bits(cache) != _bits(wanted_cache)).sum()),
    )


class _Said(logging.Handler):
    """Keeps what the dispatcher warns of: why it would compile instead."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _chip(task: ArtifactTask) -> Chip:
    """The chip; in a rehearsal one whose devices are CPUs."""
    chip = load_chip(task.chip)
    return replace(chip, device_kinds=("cpu",)) if task.is_rehearsal else chip


def _plan(chip: str) -> LaunchPlan:
    """What a server with the shipped tables would launch for the batch."""
    tables = load_tables([shipped_folder()], chip=chip)
    dispatcher = Dispatcher(load_chip(chip), tables)
    return dispatcher.plan(PROBLEM, Step.of_batch(BATCH))


def _arguments(problem: Problem) -> list[Any]:
    """Arrays of the call, without sinks, on the device."""
    operands = draw_operands(problem, BATCH)
    a = operands.arrays
    metadata = (a.kv_lens, a.page_indices, a.cu_q_lens, a.distribution)
    return [
        operands.queries, operands.keys, operands.values, operands.kv_cache,
        *map(jnp.asarray, metadata),
    ]  # fmt: skip


def _jitted(plan: LaunchPlan, *, is_rehearsal: bool) -> Any:
    """(output, cache) of the call without an artefact."""
    arguments = _arguments(plan.problem)
    if is_rehearsal:
        return jax.jit(_stand_in(plan))(*arguments)
    return attend(Arrays(*arguments), plan=plan, sm_scale=plan.problem.sm_scale)


def _stand_in(plan: LaunchPlan) -> Callable[..., Any]:
    """The float32 reference as a plan's program; right for the one batch."""
    problem, arrays = plan.problem, BATCH.arrays(plan.problem)

    def attention(q: Any, k: Any, v: Any, cache: Any, *metadata: Any) -> Any:
        del metadata
        out, cache = reference.ragged_paged_attention(q, k, v, cache, arrays, problem)
        return out.astype(problem.resolved_out_dtype), cache

    return attention


def _serialize_stand_in(plan: LaunchPlan) -> bytes:
    jitted = jax.jit(_stand_in(plan), keep_unused=True)
    executable = jitted.lower(*abstract_inputs(plan.problem)).compile().runtime_executable()
    assert executable is not None  # jax's type says it may be, for programs without one
    content: bytes = executable.serialize()
    return content


def _bits(array: jax.Array) -> Any:
    """Bytes of an array: NaN equals itself."""
    return np.ascontiguousarray(np.asarray(array)).view(np.uint8)
