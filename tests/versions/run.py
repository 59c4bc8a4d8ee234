"""`make test-versions`: each pair of `known_versions.yaml` compiles our kernels, within a band.

    python tests/versions/run.py [--pair LIBTPU]... [--chips v6e,v7x] [--families decode]
                                 [--environments FOLDER] [--workers N]
    python tests/versions/run.py --lint [--sample N] [--chip v6e]     # `make lint-kernels`

Each pair has an environment of its own, made once and kept (about 1.5 GB each), and compiles every
family for every chip (`matrix.py`). Schedules and answers are kept beside the environments: stop
it at any time, it goes on. Exit code 1 when a kernel is not compiled, not understood, moves other
bytes than its account says, or takes a time outside the band. `interpreter.py` says where a Python
is looked for. With --lint the newest pair whose libtpu has a linter for kernels looks at every
shipped config instead (`rpa-tune tables lint --kernels`).
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpreter import find_interpreter
from matrix import CASES

from rpa_kernels.slots import FAMILIES
from rpa_tune.compile.lint import has_linter
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.hw.chip import load_chips
from rpa_tune.known_versions import Pair, supported_pairs

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(__file__).with_name("matrix.py")
# Time against that of the first pair, fixed before the first run: a default config is expected to
# keep its time within 10 %, and schedules that are misread are off by far more.
BAND = (0.90, 1.10)


def requirements(pair: Pair) -> list[str]:
    """What an environment needs: what `tune` asks for, with this pair's jax and libtpu."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["tune"], "setuptools>=77"]
    others = [line for line in wanted if not line.startswith("jax")]
    return [
        f"jax=={pair.jax}", f"jaxlib=={pair.jax}", f"libtpu=={pair.libtpu}", *others,
    ]  # fmt: skip


def environment(pair: Pair, folder: Path) -> Path:
    """The Python of a pair's environment, which is made unless it is there whole."""
    home = folder / f"py{pair.python}-jax{pair.jax}-libtpu{pair.libtpu}"
    python, done = home / "bin" / "python", home / ".done"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not done.exists():
        print(f"making {home}", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([find_interpreter(pair.python), "-m", "venv", home], check=True)
        subprocess.run([*pip, *requirements(pair)], check=True)
        done.touch()
    where = "import rpa_kernels; print(rpa_kernels.__file__)"
    has = subprocess.run([python, "-P", "-c", where], capture_output=True, text=True, check=False)
    if has.stdout.strip() != str(ROOT / "kernels" / "__init__.py"):  # another tree, or none
        print(f"installing {ROOT} in {home}", file=sys.stderr)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    return python


def answers_of(
    python: Path, folder: Path, chips: str, family: str, workers: int
) -> Iterator[dict[str, Any]]:
    """What one pair makes of a family's kernels, as the answers come."""
    command = [python, KERNELS, folder, chips, family, str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        yield from map(json.loads, child.stdout or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one pair makes of one kernel.

    Attributes:
      text: Its time against that of the first pair, in the first pair its time, or what went wrong.
      cause: Why it is not good; empty if it is.
    """

    text: str
    cause: str = ""


def judge(row: dict[str, Any], first: dict[str, Any] | None) -> Cell:
    """Holds an answer against the band.

    Args:
      row: Of one kernel under one pair.
      first: The same of the first pair, empty if it has none; None for that pair itself.
    """
    if row["status"] != "ok":
        return Cell(text=row["status"], cause=f"{row['status']}: {row['detail']}")
    text = f"{row['time_us']:.1f} us"
    if first is None:
        return Cell(text=text)
    if not first or first["time_us"] is None:
        return Cell(text=text, cause="the first pair has no time to compare with")
    if first["sources"] != row["sources"]:
        return Cell(text=text, cause="kernel or simulator changed during the run: run it again")
    ratio = row["time_us"] / first["time_us"]
    outside = f"{text} instead of {first['time_us']:.1f} us, outside of {BAND[0]} to {BAND[1]}"
    return Cell(text=f"{ratio:.3f}", cause="" if BAND[0] <= ratio <= BAND[1] else outside)


def run_matrix(
    pythons: Mapping[Pair, Path], folder: Path, chips: str, families: Sequence[str], workers: int
) -> dict[tuple[Pair, str, str], Cell]:
    """All cells by pair, chip and family, each told on a line of its own when it is there.

    A family is asked of all pairs before the next one is; the first pair gives the times that the
    others are held against.
    """
    cells: dict[tuple[Pair, str, str], Cell] = {}
    num_cells, started = len(pythons) * len(chips.split(",")) * len(families), time.monotonic()
    for family in families:
        base: dict[str, dict[str, Any]] = {}
        for number, (pair, python) in enumerate(pythons.items()):
            for row in answers_of(python, folder, chips, family, workers):
                chip = row["chip"]
                cell = judge(row, base.get(chip, {}) if number else None)
                cells[pair, chip, family] = cell
                if not number:
                    base[chip] = row
                source = "kept" if row["kept"] else f"{row['seconds']:.0f} s"
                print(
                    f"[{time.monotonic() - started:6.0f} s] {len(cells)} of {num_cells}: "
                    f"{family} {chip}, {pair}: {cell.cause or cell.text} ({source})",
                    file=sys.stderr,
                )
            for chip in chips.split(","):
                gone = Cell(text="no answer", cause="the process ended; its error stands above")
                cells.setdefault((pair, chip, family), gone)
    return cells


def print_table(cells: Mapping[tuple[Pair, str, str], Cell], pairs: Sequence[Pair]) -> int:
    """Prints a line for each kernel and a column for each pair; returns how many are not good."""
    kernels = {(chip, family) for _, chip, family in cells}
    chips = list(load_chips())
    order = sorted(kernels, key=lambda one: (FAMILIES.index(one[1]), chips.index(one[0])))
    print(f"{'':17}" + "".join(f"{pair.libtpu:>15}" for pair in pairs))
    causes: list[str] = []
    for chip, family in order:
        line = f"{chip:4} {family:12}"
        for pair in pairs:
            cell = cells[pair, chip, family]
            if cell.cause:
                causes.append(f"[{len(causes) + 1}] {family} {chip}, {pair}: {cell.cause}")
            line += f"{cell.text + (f' [{len(causes)}]' if cell.cause else ''):>15}"
        print(line)
    for cause in causes:
        print(cause)
    return len(causes)


def lint_kernels(environments: Path, options: Sequence[str]) -> int:
    """The exit code of `rpa-tune tables lint --kernels` under the newest pair that has a linter.

    Args:
      environments: Where the pairs' environments are.
      options: Further options of that command.
    """
    pair = next(pair for pair in reversed(supported_pairs()) if has_linter(pair.libtpu))
    command = ["-P", "-m", "rpa_tune", "tables", "lint", ROOT / "tuned_tables", "--kernels"]
    cache = ["--cache", environments / "compiles"]
    python = environment(pair, environments)
    return subprocess.run([python, *command, *cache, *options], check=False).returncode


def main() -> int:
    """Runs the matrix, or the linter; the exit code says whether all is good."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--pair", action="append", default=[], metavar="LIBTPU")
    parser.add_argument("--chips", default=",".join(load_chips()))
    parser.add_argument("--families", default=",".join(CASES))
    parser.add_argument("--environments", type=Path, default=default_cache_dir() / "versions")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--lint", action="store_true")
    asked, others = parser.parse_known_args()
    if asked.lint:
        return lint_kernels(asked.environments, ["--workers", str(asked.workers), *others])
    if others:
        parser.error(f"unknown: {' '.join(others)}")
    pairs, chips, families = supported_pairs(), asked.chips.split(","), asked.families.split(",")
    for name, words, known in (
        ("--pair", asked.pair, [pair.libtpu for pair in pairs]),
        ("--chips", chips, list(load_chips())),
        ("--families", families, list(CASES)),
    ):
        if unknown := set(words) - set(known):
            parser.error(f"{name} {', '.join(unknown)}: known are {', '.join(known)}")
    chosen = [p for i, p in enumerate(pairs) if not asked.pair or i == 0 or p.libtpu in asked.pair]
    started = time.monotonic()
    pythons = {pair: environment(pair, asked.environments) for pair in chosen}
    cells = run_matrix(
        pythons, asked.environments / "compiles", asked.chips, families, asked.workers
    )
    num_bad = print_table(cells, chosen)
    bad = f"{num_bad} not good" if num_bad else "all good"
    each = len(chips) * len(families)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(chosen)} pairs, {each} kernels each, simulated, against the first pair; {bad}; "
        f"{spent.ru_utime + spent.ru_stime:.0f} s of CPU in {time.monotonic() - started:.0f} s"
    )
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
