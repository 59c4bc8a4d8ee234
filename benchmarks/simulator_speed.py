"""How fast the simulator is: parsing, and 100 batches of 128 sequences, with and without interval.

Compiles one decode kernel for a chip that is not there, then times. Seconds are CPU seconds of one
core, of each simulation the least of three; what else the machine does slows them down all the
same, so that the load stands beside them.

    python benchmarks/simulator_speed.py [--chip v6e] [--json FILE]
"""

import argparse
import gzip
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate.simulate_task import TASK, SimulateTask, scalar_operands
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.ensemble import MachineSet, load_sets
from rpa_tune.llo.machine import Machine, load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import simulate
from rpa_tune.provenance import provenance

PROBLEM = Problem(
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    page_size=128,
    max_num_tokens=256,
    max_num_seqs=128,
    pages_per_seq=64,
    num_pages=8192,
    sm_scale=128**-0.5,
)
NUM_BATCHES = 100
REPEATS = 3  # of each simulation; the least counts


def batches() -> list[Batch]:
    """Decode batches of 128 sequences with contexts of 100 to 8,000 tokens."""
    rng = np.random.default_rng(0)
    return [
        Batch(
            q_lens=(1,) * 128,
            kv_lens=tuple(int(n) for n in rng.integers(100, 8000, 128)),
            num_decode=128,
            page_seed=seed,
        )
        for seed in range(NUM_BATCHES)
    ]


def compile_decode(chip: str, cache_dir: Path) -> tuple[Candidate, str]:
    """Compiles the decode kernel's default config; returns it with its schedule's text."""
    family, record = load_family("decode"), load_chip(chip)
    config = family.default_config(PROBLEM, record.target)
    candidate = Candidate(
        family=family, problem=PROBLEM, config=config, chip=record, workload="speed"
    )
    task = SimulateTask(candidate=candidate, batches=(), cache_dir=cache_dir)
    with WorkerPool(num_workers=1) as pool:
        (reply,) = pool.map_unordered(TASK, [task])
    if reply.failure is not None:
        raise SystemExit(f"{reply.failure.kind}: {reply.failure.detail}")
    compiled = CompileCache(cache_dir).load(compile_key(candidate))
    if compiled is None or compiled.bundles is None:
        raise SystemExit(f"no schedule: {reply.value.detail}")
    return candidate, gzip.decompress(compiled.bundles.read_bytes()).decode()


def measure(chip: str) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        candidate, text = compile_decode(chip, Path(folder))
        path = Path(folder) / "kernel-final_bundles.txt"
        path.write_text(text)
        started = time.process_time()
        program = load_program(path)
        parse_s = time.process_time() - started
    machine = load_machine(chip)
    launches = [scalar_operands(candidate, batch) for batch in batches()]
    sets = load_sets(chip)
    simulate(program, machine, launches[0], sets=sets)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_bundles, simulate_s, with_interval_s = 0, 0.0, 0.0
    for launch in launches:
        # By turns, so that what else the machine does falls on both.
        plain = [_timed(program, machine, launch, ()) for _ in range(REPEATS)]
        # With its interval: what it did is replayed under each set of parameters.
        ranged = [_timed(program, machine, launch, sets) for _ in range(REPEATS)]
        num_bundles += plain[0][1]
        simulate_s += min(plain)[0]
        with_interval_s += min(ranged)[0]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "chip": chip,
        "dump_mb": len(text) / 1e6,
        "parse_s": parse_s,
        "parse_s_per_2_4_mb": parse_s * 2.4e6 / len(text),
        "batches": NUM_BATCHES,
        "bundles": num_bundles,
        "simulate_s": simulate_s,
        "with_interval_s": with_interval_s,
        "interval_costs": with_interval_s / simulate_s,
        "million_bundles_per_s": num_bundles / simulate_s / 1e6,
        "memory_growth_mb": (after - before) / 1024,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }


def _timed(
    program: Program, machine: Machine, launch: Operands, sets: Sequence[MachineSet]
) -> tuple[float, int]:
    """CPU seconds of one simulation, and the bundles in it."""
    started = time.process_time()
    timeline = simulate(program, machine, launch, sets=sets)
    return time.process_time() - started, timeline.num_bundles


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", default="v6e")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = measure(args.chip)
    for name, value in figures.items():
        print(f"{name:24}{value:,.3f}" if isinstance(value, float) else f"{name:24}{value}")
    if args.json:
        args.json.write_text(json.dumps(figures | {"provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
