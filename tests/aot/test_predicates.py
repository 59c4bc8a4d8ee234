"""Branches of compiled kernels are taken as the kernel says, whatever their predicates are made of.

A branch taken wrongly gives a wrong time without a word, so random programs are compiled and what
they copy in the simulation is compared with what they say in plain Python.
"""

import random

import numpy as np
import pytest
from aot.predicate_tasks import NUM_SCALARS, TILE_BYTES, random_program, tiles_and_copies

from rpa_tune.compile.pool import WorkerPool
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.simulate import simulate

pytestmark = pytest.mark.aot

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")
PROGRAMS = 8
INPUTS = 12


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(num_workers=2, deadline_s=120) as pool:
        yield pool


@pytest.mark.parametrize("chip", CHIPS)
def test_random_programs_copy_what_they_say(pool, chip, tmp_path):
    rng = random.Random(chip)
    programs = [random_program(rng) for _ in range(PROGRAMS)]
    tasks = [(chip, program) for program in programs]
    seen = set()
    for reply in pool.map_unordered("aot.predicate_tasks:compile_program", tasks):
        assert reply.failure is None, (programs[reply.index], reply.failure)
        path = tmp_path / f"{reply.index}-final_bundles.txt"
        path.write_text(reply.value)
        compiled = load_program(path)
        for _ in range(INPUTS):
            scalars = [rng.randint(-3, 6) for _ in range(NUM_SCALARS)]
            run = simulate(compiled, load_machine(chip), {0: np.array(scalars, np.int32)})
            tiles, copies = tiles_and_copies(programs[reply.index], scalars)
            # One more copy writes the output.
            found = run.read_bytes / TILE_BYTES, run.num_copies - 1
            assert found == (tiles, copies), (programs[reply.index], scalars)
            seen.add(tiles)
    assert len(seen) > PROGRAMS  # the inputs made a difference
