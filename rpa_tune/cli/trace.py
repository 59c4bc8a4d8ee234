"""`rpa-tune explain --trace`: the heaviest batch of a candidate as a Perfetto trace."""

import gzip
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.errors import DumpError
from rpa_tune.evaluate.simulate_task import scalar_operands
from rpa_tune.files import write_whole
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.report.timeline import write_trace


def write_heaviest(
    candidate: Candidate,
    batches: Sequence[Batch],
    batch_us: Sequence[float],
    *,
    cache_dir: Path,
    path: Path,
    one_step: bool = False,
) -> None:
    """Writes the trace of the batch that takes longest, and says so on stderr.

    Args:
      candidate: What is launched.
      batches: Of its workload.
      batch_us: Time of each.
      cache_dir: Where its schedule is.
      path: The file to write.
      one_step: Only one trip of the loop that takes most of the time.

    Raises:
      DumpError: The candidate's schedule is not in the cache, or not understood.
    """
    index = max(range(len(batches)), key=lambda i: batch_us[i])
    program = _load(candidate, cache_dir)
    operands = scalar_operands(candidate, batches[index])
    fields = " ".join(f"{name}={value}" for name, value in asdict(candidate.config).items())
    dropped = write_trace(
        program, load_machine(candidate.chip.name), operands, path,
        title=f"{candidate.family.name} {fields}", one_step=one_step,
    )  # fmt: skip
    cut = f"; {dropped:,} slices did not fit" if dropped else ""
    click.echo(
        f"trace of batch {index} ({batch_us[index]:,.1f} us) in {path}{cut}; "
        "open it at ui.perfetto.dev",
        err=True,
    )


def save_schedule(candidate: Candidate, *, cache_dir: Path, path: Path) -> None:
    """Writes a candidate's schedule as the compiler dumped it, and says so on stderr.

    Raises:
      DumpError: It is not in the cache.
    """
    text = load_schedule(candidate, cache_dir)
    write_whole(path, text.encode())
    click.echo(f"schedule of {text.count(chr(10)):,} lines in {path}", err=True)


def load_schedule(candidate: Candidate, cache_dir: Path) -> str:
    """The text of a candidate's schedule, compiled before.

    Raises:
      DumpError: It is not in the cache.
    """
    compiled = CompileCache(cache_dir).load(compile_key(candidate))
    if compiled is None or compiled.bundles is None:
        raise DumpError("the cache has no schedule of this candidate", where=str(cache_dir))
    raw = compiled.bundles.read_bytes()
    return (gzip.decompress(raw) if compiled.bundles.suffix == ".gz" else raw).decode()


def _load(candidate: Candidate, cache_dir: Path) -> Program:
    """The candidate's schedule, parsed."""
    with tempfile.NamedTemporaryFile("w", suffix="-final_bundles.txt") as plain:
        plain.write(load_schedule(candidate, cache_dir))
        plain.flush()
        return load_program(Path(plain.name))
