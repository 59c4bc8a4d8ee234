"""Cost of the dispatcher on a serving host: look-up, loading, import; beside the public look-up.

    python benchmarks/dispatch.py --json out.json

Times are measured on this machine's CPU: the least of many short repeats, for both sides, because
others' work on a shared machine only ever adds. Loading and first look-ups take milliseconds, in
which a busy machine hardly ever leaves one alone: those are CPU times. The public look-up is the
function of the tpu-inference 0.32.0 wheel with its logging switched off and its device name given,
both in its favour; it returns block sizes for one kernel, `plan` the whole launch of a step.
"""

import datetime
import importlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.dispatch.select import select
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.provenance import versions
from rpa_tune.tables.key import tuning_key
from rpa_tune.tables.reader import load_tables, shipped_folder
from rpa_tune.tables.row import ALWAYS_FIRST, Evidence, TableRow
from rpa_tune.tables.step import Step
from rpa_tune.tables.writer import merge_into

PEER = "tpu_inference.kernels.ragged_paged_attention.v3.tuned_block_sizes"
PROBLEM = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=1024,
    max_num_seqs=64, pages_per_seq=64, num_pages=2048,
)  # fmt: skip
CPU_INFO = Path("/proc/cpuinfo")
NUM_ROWS = 1000, 5000  # tables larger than any we ship of one family, to see how loading grows


def least_us(call: Callable[[], object], *, repeats: int = 500, inner: int = 200) -> float:
    """Least over repeats of the mean time of one call, in microseconds."""
    samples = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        for _ in range(inner):
            call()
        samples.append((time.perf_counter_ns() - start) / inner / 1000)
    return min(samples)


def conditions() -> dict[str, Any]:
    """What the figures are of, and how busy the machine was: others' work slows them."""
    return {
        "are": "measured on this CPU",
        "date": datetime.date.today().isoformat(),
        "cpu": next(
            (line.split(":")[1].strip() for line in CPU_INFO.read_text().splitlines()
             if line.startswith("model name")), platform.machine(),
        ),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "peer": f"{WHEEL.package} {WHEEL.version}",
        **{name: version for name, version in versions().items() if version},
    }  # fmt: skip


def plan_lookups() -> dict[str, float]:
    """`plan` for a problem that was seen before, the state of every step but the first."""
    dispatcher = load_dispatcher(chip="v6e")
    step = Step.of([1] * 48 + [256], [1000] * 49, [48, 48, 49])
    dispatcher.plan(PROBLEM, step)
    fresh = replace(PROBLEM)  # equal, not the same object: hashed and compared in full
    lengths = [1] * 48 + [256], [1000] * 49, [48, 48, 49]
    return {
        "plan_lookup_us": least_us(lambda: dispatcher.plan(fresh, step)),
        "step_and_plan_us": least_us(lambda: dispatcher.plan(fresh, Step.of(*lengths)), inner=50),
        "first_plan_us": min(
            least_us(lambda: load_dispatcher(chip="v6e").plan(PROBLEM, step), repeats=1, inner=1)
            for _ in range(50)
        ),
    }


def loading() -> dict[str, float]:
    """All shipped tables, the shipped ones of one chip, and made-up ones of `NUM_ROWS` rows."""
    shipped = [shipped_folder()]
    figures: dict[str, float] = {
        "shipped_rows": len(load_tables(shipped)),
        "shipped_mb": sum(f.stat().st_size for f in shipped[0].glob("*/*.jsonl")) / 1e6,
        "load_tables_ms": _load_ms(shipped[0], repeats=100),
        "load_v6e_ms": _load_ms(shipped[0], repeats=100, chip="v6e"),
    }
    for number in NUM_ROWS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            merge_into(folder, many_rows(number))
            figures |= {
                f"load_{number}_rows_ms": _load_ms(folder, repeats=30, chip="v6e"),
                f"exact_of_{number}_rows_us": _first_us(folder, PROBLEM, "exact"),
                f"nearest_of_{number}_rows_us": _first_us(
                    folder, replace(PROBLEM, max_num_seqs=128), "nearest"
                ),
            }
    return figures


def _load_ms(folder: Path, *, repeats: int, chip: str | None = None) -> float:
    samples = []
    for _ in range(repeats):
        start = time.process_time_ns()
        load_tables([folder], chip=chip)
        samples.append((time.process_time_ns() - start) / 1e6)
    return min(samples)


def _first_us(folder: Path, problem: Problem, source: str) -> float:
    """What is found for a problem that nobody has asked for, in tables that were just loaded."""
    target = load_chip("v6e").target
    samples = []
    for _ in range(20):
        tables = load_tables([folder], chip="v6e")
        start = time.process_time_ns()
        choice = select(problem, target, "decode", tables)
        samples.append((time.process_time_ns() - start) / 1000)
        if isinstance(choice, Infeasible) or choice.source != source:
            raise RuntimeError(f"the look-up was meant to be {source}: {choice}")
    return min(samples)


def many_rows(number: int) -> Iterable[TableRow]:
    """Rows that differ in their key only."""
    evidence = Evidence(
        verdict="tuned", fidelity="simulated", time_us=1.0, heuristic_us=2.0, error_pct=5.0,
        regret_pct=0.0, bound_by="hbm", workload="made-up", workload_source="made up", verified="",
        workload_digest="0" * 16,
        num_candidates=1, kernel_digest="0" * 16, jax="0", libtpu="0", date="2026-01-01",
    )  # fmt: skip
    config = {"bkv_sz": 512, "bkv_csz": 512, "seqs_per_step": 1, "num_buffers": 3, "bq_sz": 8}
    for i in range(number):
        problem = replace(PROBLEM, num_q_heads=8 * (1 + i % 50), page_size=16 * (1 + i // 50))
        key = tuning_key(problem, load_chip("v6e").name, "decode")
        yield TableRow(key=key, configs=(config,), rule=ALWAYS_FIRST, evidence=evidence)


def imports() -> dict[str, Any]:
    """A fresh interpreter that imports the serving half; jax's own share told apart."""
    code = (
        "import time; a = time.perf_counter(); import jax, jax.numpy\n"
        "from jax.experimental import pallas; b = time.perf_counter()\n"
        "import rpa_tune.dispatch, sys; c = time.perf_counter()\n"
        "heavy = {'optuna', 'pandas', 'click', 'rich', 'numba'} & set(sys.modules)\n"
        "print(1e3 * (b - a), 1e3 * (c - b), ','.join(sorted(heavy)))"
    )
    runs = []
    for _ in range(10):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        runs.append(run.stdout.split(" "))
    return {
        "import_jax_ms": min(float(run[0]) for run in runs),
        "import_dispatch_ms": min(float(run[1]) for run in runs),
        "heavy_packages_imported": [name for name in runs[0][2].strip().split(",") if name],
    }


def peer_lookup(cache_dir: Path) -> dict[str, Any]:
    """The public look-up on a key its table has, and on one it lacks."""
    root = WHEEL.fetch(cache_dir)
    module: Any = WHEEL.load(root, PEER)

    class Silent:
        """Takes log lines and drops them."""

        def info_once(self, *_: object) -> None: ...

        def warning_once(self, *_: object) -> None: ...

    jnp = importlib.import_module("jax.numpy")
    module.logger = Silent()
    module.get_tpu_version = lambda: 6
    table = module.TUNED_BLOCK_SIZES
    device = next(name for name in table if "v6" in name)
    module.get_device_name = lambda: device

    def look_up(page_size: int) -> object:
        return module.get_tuned_block_sizes(
            jnp.bfloat16, jnp.bfloat16, 32, 8, 128, page_size, 1024, 8192 // page_size
        )

    hits = module.get_lookup_keys(128, jnp.bfloat16, jnp.bfloat16, 32, 8, 128, 8192, None)
    try:
        table[hits[0]][hits[1]][hits[2]][hits[3]][hits[4]]
        is_hit = True
    except KeyError:
        is_hit = False
    return {
        "peer_lookup_us": least_us(lambda: look_up(128)),
        "peer_key_is_in_its_table": is_hit,
        "peer_miss_us": least_us(lambda: look_up(8)),
    }


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".rpa-tune/wheels"),
              show_default=True, help="The public wheel is unpacked here.")  # fmt: skip
def main(json_file: Path | None, cache: Path) -> None:
    """Measures the dispatcher on this machine."""
    logging.getLogger("rpa_tune.dispatch").setLevel(logging.ERROR)
    figures = conditions() | plan_lookups() | loading() | imports() | peer_lookup(cache)
    for name, value in figures.items():
        click.echo(f"{name:28}{value:.2f}" if isinstance(value, float) else f"{name:28}{value}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
