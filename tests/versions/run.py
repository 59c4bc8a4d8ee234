"""`make test-versions`: each pair of `known_versions.yaml` compiles our kernels, within a band.

    python tests/versions/run.py [--pair LIBTPU]... [--chips v6e,v7x] [--families decode]
                                 [--environments FOLDER]
    python tests/versions/run.py --lint     # `make lint-kernels`

Each pair has an environment of its own, made once and kept (about 1.5 GB each), and compiles every
family for every chip. Exit code 1 when a kernel is not compiled, not understood, moves other bytes
than its account says, or takes a time outside the band. `interpreter.py` says where a Python is
looked for. With --lint the newest pair whose libtpu has a linter for kernels looks at every shipped
config instead (`rpa-tune tables lint --kernels`).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from interpreter import find_interpreter

from rpa_kernels.slots import SLOTS
from rpa_tune.compile.lint import has_linter
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.hw.chip import load_chips
from rpa_tune.known_versions import Pair, supported_pairs

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(__file__).with_name("kernels.py")
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
    if done.read_text() != str(ROOT):  # the tree that is tested is this one
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
        done.write_text(str(ROOT))
    return python


def compile_with(python: Path, cache: Path, chips: str, families: str) -> list[dict]:
    """What one pair makes of the kernels."""
    run = subprocess.run(
        [python, KERNELS, cache, chips, families], stdout=subprocess.PIPE, text=True, check=False
    )
    if run.returncode != 0:
        return []
    rows: list[dict] = json.loads(run.stdout.splitlines()[-1])["rows"]
    return rows


def judge(row: dict, base_us: float | None) -> tuple[str, bool]:
    """A cell of the table, and whether it is good.

    Args:
      row: Of one kernel under one pair.
      base_us: Its time under the first pair; None if it has none.
    """
    if row["status"] != "ok":
        return f"{row['status']}: {row['detail']:.200}", False
    if base_us is None:
        return f"{row['time_us']:.1f} us, nothing to compare with", False
    ratio = row["time_us"] / base_us
    good = BAND[0] <= ratio <= BAND[1]
    return f"{row['time_us']:8.1f} us {ratio:6.3f}{'' if good else '  OUTSIDE THE BAND'}", good


def lint_kernels(environments: Path) -> int:
    """The exit code of `rpa-tune tables lint --kernels` under the newest pair that has a linter."""
    pair = next(pair for pair in reversed(supported_pairs()) if has_linter(pair.libtpu))
    command = ["-P", "-m", "rpa_tune", "tables", "lint", ROOT / "tuned_tables", "--kernels"]
    return subprocess.run([environment(pair, environments), *command], check=False).returncode


def main() -> int:
    """Runs the pairs in their order; the first gives the times that others are held against."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", action="append", default=[], metavar="LIBTPU")
    parser.add_argument("--chips", default=",".join(load_chips()))
    parser.add_argument("--families", default=",".join(SLOTS))
    parser.add_argument("--environments", type=Path, default=default_cache_dir() / "versions")
    parser.add_argument("--lint", action="store_true")
    asked = parser.parse_args()
    if asked.lint:
        return lint_kernels(asked.environments)
    pairs = supported_pairs()
    if unknown := set(asked.pair) - {pair.libtpu for pair in pairs}:
        parser.error(f"--pair {', '.join(unknown)}: known are {', '.join(p.libtpu for p in pairs)}")
    chosen = [p for i, p in enumerate(pairs) if not asked.pair or i == 0 or p.libtpu in asked.pair]
    num_kernels = len(asked.chips.split(",")) * len(asked.families.split(","))
    base: dict[tuple[str, str], float] = {}
    num_bad = 0
    for pair in chosen:
        python = environment(pair, asked.environments)
        rows = compile_with(python, asked.environments / "compiles", asked.chips, asked.families)
        print(f"Python {pair.python}, {pair}: {len(rows)} of {num_kernels} kernels")
        num_bad += num_kernels - len(rows)
        for row in sorted(rows, key=lambda row: (row["chip"], row["family"])):
            kernel = row["chip"], row["family"]
            if pair is pairs[0] and row["time_us"]:
                base[kernel] = row["time_us"]
            text, good = judge(row, base.get(kernel))
            num_bad += not good
            print(f"  {row['chip']:4} {row['family']:8} {text}", flush=True)
    bad = f"{num_bad} not good" if num_bad else "all good"
    print(f"{len(chosen)} pairs, {num_kernels} kernels each, simulated; {bad}")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
