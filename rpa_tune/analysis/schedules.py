"""The compiled schedules of an explained candidate, out of the compile cache."""

import contextlib
import gzip
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rpa_kernels.batch import Batch
from rpa_tune.analysis.phases import bundle_labels, cycles_by_phase
from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.errors import DumpError
from rpa_tune.libtpu_args import VARIABLE
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.profile import Profile, profile, read_sources
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.sources import SOURCES_FLAG

# What `explain` compiles with; schedules of sweeps say no source lines.
_SETTINGS = {VARIABLE: SOURCES_FLAG}


def load_schedules(candidate: Candidate, cache_dir: Path) -> dict[str, str]:
    """The text of the schedule of each of a candidate's Pallas calls, by their names.

    Raises:
      DumpError: One is not in the cache.
    """
    cache, found = CompileCache(cache_dir), {}
    for name in candidate.family.kernel_names(candidate.problem, candidate.config):
        compiled = cache.load(compile_key(candidate, _SETTINGS, name))
        if compiled is None or compiled.bundles is None:
            raise DumpError("the cache has no schedule of this candidate", where=str(cache_dir))
        raw = compiled.bundles.read_bytes()
        found[name] = (gzip.decompress(raw) if compiled.bundles.suffix == ".gz" else raw).decode()
    return found


@contextlib.contextmanager
def as_file(text: str) -> Iterator[Path]:
    """A schedule as a file, for as long as it is read."""
    with tempfile.NamedTemporaryFile("w", suffix="-final_bundles.txt") as plain:
        plain.write(text)
        plain.flush()
        yield Path(plain.name)


def longest_launch(
    candidate: Candidate, batch: Batch, cache_dir: Path
) -> tuple[Program, Operands, str]:
    """The Pallas call of a candidate that takes most of a batch's time: one of one, mostly.

    Returns:
      Its program, its scalars, and the text of its schedule.

    Raises:
      DumpError: A schedule is not in the cache, or not understood.
    """
    launches = candidate.family.launches(candidate.problem, candidate.config, candidate.chip, batch)
    machine = load_machine(candidate.chip.name)
    found = []
    for text, operands in zip(load_schedules(candidate, cache_dir).values(), launches, strict=True):
        with as_file(text) as path:
            found.append((load_program(path), operands, text))
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda one: simulate(one[0], machine, one[1]).total_cycles)


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseProfile:
    """Where the cycles of one launch went.

    Attributes:
      cycles: By bundle and source line.
      phases: By what the kernel does, most first.
    """

    cycles: Profile
    phases: dict[str, int]


def profile_batch(candidate: Candidate, batch: Batch, cache_dir: Path) -> PhaseProfile | None:
    """Cycles of a batch by source line and phase; None where the schedule was not kept."""
    try:
        program, operands, text = longest_launch(candidate, batch, cache_dir)
    except DumpError:
        return None
    return profile_program(program, operands, candidate.chip.name, text)


def profile_program(program: Program, operands: Operands, chip: str, text: str) -> PhaseProfile:
    """The same of a program and the text of its schedule."""
    sources = read_sources(text)
    found = profile(program, load_machine(chip), operands, sources)
    phases = cycles_by_phase(found, program, bundle_labels(program, sources))
    return PhaseProfile(cycles=found, phases=phases)
