"""Does a sweep understand what this compiler writes? One small kernel a chip says so, in seconds.

A libtpu that spells an instruction in a new way makes every candidate `not_understood`: the probe
finds that out before the first is compiled. What the probes of an installation came to is kept, so
that a run that goes on asks nothing.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpa_kernels.batch import Batch
from rpa_kernels.slots import is_latent, slot_of
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import probe
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.compile.failure import TaskPool
from rpa_tune.errors import DumpError
from rpa_tune.evaluate.simulate_task import TASK, SimulateTask
from rpa_tune.families.registry import load_family
from rpa_tune.files import write_whole
from rpa_tune.hw.chip import Chip
from rpa_tune.known_versions import pair_advice
from rpa_tune.llo.unknown import UnknownOpcode, unknown_opcodes
from rpa_tune.provenance import simulator_digest, versions

PROBE_DEADLINE_S = 120.0
RECIPE = "CONTRIBUTING.md, `A new libtpu`"
# Lengths of one, at the edge of a page and beyond it; one of each kind of sequence for mixed.
_BATCHES = {
    "decode": Batch(q_lens=(1, 1, 1), kv_lens=(1, 64, 130), num_decode=3),
    "prefill": Batch(q_lens=(5,), kv_lens=(70,), num_decode=0, num_prefill=1),
    "mixed": Batch(q_lens=(1, 5), kv_lens=(64, 70), num_decode=1),
}
# The same of latent attention.
LATENT = dataclasses.replace(
    probe.PROBLEM, num_q_heads=16, head_dim=512, rope_dim=64, sm_scale=192**-0.5
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """What came of one small kernel.

    Attributes:
      chip: What it was compiled for.
      family: Which kernel.
      status: OK when its schedule was compiled, read, run, and moved what its account says.
      detail: Why not, in one line.
      file: Its schedule; None when there is none.
      unknown: Opcodes of the schedule that the table lacks.
      libtpu_args: Flags that the compiler was given.
    """

    chip: Chip
    family: str
    status: Status
    detail: str = ""
    file: Path | None = None
    unknown: tuple[UnknownOpcode, ...] = ()
    libtpu_args: str = ""

    def error(self) -> DumpError:
        """What a command says that cannot go on."""
        libtpu = f"libtpu {versions()['libtpu']}"
        advice = pair_advice(versions())
        listed = f"`rpa-tune opcodes --chip {self.chip.name}` lists them with examples"
        if self.unknown:
            names = ", ".join(f"`{opcode.mnemonic}`" for opcode in self.unknown)
            line, _ = self.unknown[0].examples[0]
            return DumpError(
                f"schedules of {libtpu} for {self.chip.name} have opcodes that rpa-tune does not "
                f"know: {names}",
                where=f"{self.file}:{line}",
                hint=f"{listed}; {RECIPE}, says how to add them to rpa_tune/llo/opcodes.yaml"
                + (f"; {advice}" if advice else ""),
            )
        what = "understood" if self.status is Status.NOT_UNDERSTOOD else "made"
        doctor = f"`rpa-tune doctor --chip {self.chip.name}` looks at this machine"
        return DumpError(
            f"schedules of jax {versions()['jax']} and {libtpu} for {self.chip.name} cannot be "
            f"{what}: {self.detail}",
            where=str(self.file or ""),
            hint=f"does {libtpu} know the flags {self.libtpu_args}? It ends the process if not"
            if self.libtpu_args and self.status is not Status.NOT_UNDERSTOOD
            else advice or doctor,
        )


def require_understood(
    chips: Iterable[Chip],
    pool: TaskPool,
    cache_dir: Path,
    libtpu_args: str = "",
    deadline_s: float = PROBE_DEADLINE_S,
) -> None:
    """Compiles and simulates one small kernel for each chip, unless that was done before.

    Args:
      chips: Those that something is about to be compiled for.
      pool: Where to compile.
      cache_dir: Folder of compiles; keeps what the probes came to.
      libtpu_args: Flags that the pool's workers give libtpu.
      deadline_s: Seconds that one phase of a probe may take.

    Raises:
      DumpError: A schedule is not understood, or none is made; says what, where and what to do.
      RpaTuneError: Workers cannot be started at all.
    """
    marker = functools.partial(_marker, cache_dir=cache_dir, libtpu_args=libtpu_args)
    new = [chip for chip in chips if not marker(chip).is_file()]
    for found in probe_all(new, ("decode",), pool, cache_dir, libtpu_args, deadline_s):
        if found.status is not Status.OK:
            raise found.error()
        try:
            write_whole(marker(found.chip), b"")
        except OSError:
            continue  # a full disk: the next run probes again


def probe_all(
    chips: Sequence[Chip],
    families: Sequence[str],
    pool: TaskPool,
    cache_dir: Path,
    libtpu_args: str = "",
    deadline_s: float = PROBE_DEADLINE_S,
) -> Iterator[Probed]:
    """A small kernel of each family for each chip, as they are done.

    Args:
      chips: What to compile for.
      families: Names of kernel families of ours.
      pool: Where to compile.
      cache_dir: Folder of compiles.
      libtpu_args: Flags that the pool's workers give libtpu.
      deadline_s: Seconds that one phase of a probe may take.

    Raises:
      RpaTuneError: Workers cannot be started at all.
    """
    tasks = [_task(chip, family, cache_dir, libtpu_args) for chip in chips for family in families]
    for reply in pool.map_unordered(TASK, tasks, deadline_s=deadline_s):
        candidate = tasks[reply.index].candidate
        file = _schedule(candidate, cache_dir)
        if reply.failure is not None:
            status, detail = Status.COMPILE_FAILED, reply.failure.detail
        else:
            status, detail = reply.value.status, reply.value.detail
        unread = status is Status.NOT_UNDERSTOOD and file is not None
        yield Probed(
            chip=candidate.chip,
            family=candidate.family.name,
            libtpu_args=libtpu_args,
            status=status,
            detail=detail,
            file=file,
            unknown=tuple(unknown_opcodes(read_schedule(file))) if unread and file else (),
        )


def read_schedule(file: Path) -> str:
    """The text of a schedule, compressed or not.

    Raises:
      DumpError: It cannot be read.
    """
    try:
        content = file.read_bytes()
        text = gzip.decompress(content) if file.suffix == ".gz" else content
        return text.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DumpError(f"cannot read a schedule: {error}", where=str(file)) from error


def _task(chip: Chip, family: str, cache_dir: Path, libtpu_args: str = "") -> SimulateTask:
    record = load_family(family)
    problem = LATENT if is_latent(family) else probe.PROBLEM
    config = record.default_config(problem, chip.target)
    candidate = Candidate(
        family=record, problem=problem, config=config, chip=chip, workload="probe",
        libtpu_args=libtpu_args,
    )  # fmt: skip
    return SimulateTask(
        candidate=candidate, batches=(_BATCHES[slot_of(family)],), cache_dir=cache_dir
    )


def _schedule(candidate: Candidate, cache_dir: Path) -> Path | None:
    compiled = CompileCache(cache_dir).load(compile_key(candidate))
    return compiled.bundles if compiled else None


def _marker(chip: Chip, cache_dir: Path, libtpu_args: str) -> Path:
    """The file that is there once a chip's probe was understood by this very installation."""
    made_by = [versions()[name] for name in ("jax", "jaxlib", "libtpu")]
    content = [chip.name, libtpu_args, *made_by, simulator_digest(), load_family("decode").digest]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return cache_dir / "understood" / f"{chip.name}-{digest}"
