"""What is compiled for its schedule is the kernel that engines run, whatever XLA puts around it."""

import dataclasses
import itertools

import pytest
from aot.test_kernels_compile import FEATURES, HEADS_OF_512, LATENT, LLAMA, SHORT

from rpa_tune.compile.pool import WorkerPool

pytestmark = pytest.mark.aot

# Two cores with all that a launch may be given; operands that would fit VMEM; latents.
CASES = {
    "v5p decode": ("decode", FEATURES["part_of_contexts"], "v5p"),
    "v6e mixed": ("mixed", {"max_num_tokens": 16, "max_num_seqs": 4, "num_pages": 16}, "v6e"),
}
EVERY_CHIP = ("v4", "v5e", "v5p", "v6e", "v7x")
CHANGES = {"plain": {}, **FEATURES, **HEADS_OF_512}


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(num_workers=2, deadline_s=300) as pool:
        yield pool


def assert_same(pool, tasks):
    names = list(tasks)
    for reply in pool.map_unordered("aot.check_tasks:simulated_and_served", tasks.values()):
        name = names[reply.index]
        assert reply.failure is None, (name, reply.failure)
        alone, served = reply.value
        assert alone == served, name


def test_a_launch_alone_is_the_kernel_of_the_whole_call(pool):
    tasks = {
        name: (family, dataclasses.replace(LLAMA, **changes), chip)
        for name, (family, changes, chip) in CASES.items()
    }
    assert_same(pool, tasks | {"v6e latent": ("mla-decode", LATENT, "v6e")})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decode", "mixed", "prefill"])
def test_so_is_every_feature_on_every_chip(pool, family):
    assert_same(pool, {
        f"{chip} {name}": (family, dataclasses.replace(LLAMA, **changes), chip)
        for chip, (name, changes) in itertools.product(EVERY_CHIP, CHANGES.items())
        # Float8 arithmetic and the layout along lanes are not for every chip.
        if not (chip == "v4" and "fp8" in name)
    })  # fmt: skip


@pytest.mark.slow
def test_so_are_latents_and_short_queries(pool):
    tasks = {
        f"{chip} {family}": (family, LATENT, chip)
        for chip, family in itertools.product(EVERY_CHIP, ("mla-decode", "mla-mixed"))
    }
    tasks |= {
        f"{chip} {name}": ("decode", dataclasses.replace(LLAMA, **changes), chip)
        for chip, (name, changes) in itertools.product(("v5p", "v6e", "v7x"), SHORT.items())
    }
    assert_same(pool, tasks)
