"""`rpa-tune explain --trace`: the heaviest batch of a candidate as a Perfetto trace."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from rpa_kernels.batch import Batch
from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.phases import bundle_labels
from rpa_tune.analysis.schedules import load_schedules, longest_launch
from rpa_tune.candidate import Candidate
from rpa_tune.files import write_whole
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.profile import read_sources
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
    program, operands, text = longest_launch(candidate, batches[index], cache_dir)
    fields = " ".join(f"{name}={value}" for name, value in config_to_dict(candidate.config).items())
    dropped = write_trace(
        program, load_machine(candidate.chip.name), operands, path,
        title=f"{candidate.family.name} {fields}", one_step=one_step,
        labels=bundle_labels(program, read_sources(text)),
    )  # fmt: skip
    cut = f"; {dropped:,} slices did not fit" if dropped else ""
    click.echo(
        f"trace of batch {index} ({batch_us[index]:,.1f} us) in {path}{cut}; "
        "open it at ui.perfetto.dev",
        err=True,
    )


def save_schedules(candidate: Candidate, *, cache_dir: Path, path: Path) -> None:
    """Writes a candidate's schedules as the compiler dumped them, and says so on stderr.

    Raises:
      DumpError: They are not in the cache.
    """
    write_schedules(load_schedules(candidate, cache_dir), path)


def write_schedules(schedules: Mapping[str, str], path: Path) -> None:
    """Writes schedules, one file for each: `path`, or with the kernel's name where there are more.

    Args:
      schedules: Text by kernel name.
      path: The file.
    """
    for name, text in schedules.items():
        safe = re.sub(r"[^\w.-]", "_", name)
        file = path if len(schedules) == 1 else path.with_name(f"{path.stem}-{safe}{path.suffix}")
        write_whole(file, text.encode())
        click.echo(f"schedule of {text.count(chr(10)):,} lines in {file}", err=True)
