"""Every family compiles to the same schedule whatever the shell or the caller has set in jax.

Interpreted tests cannot see this: the interpreter takes products of any precision and integers of
any width. tests/interpret/test_settings.py holds the answers against each other.
"""

import contextlib
import itertools
from dataclasses import replace

import jax
import pytest

from rpa_tune.compile import lower, target
from rpa_tune.compile.dumps import schedule_digest
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.probe import PROBLEM
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.libtpu_args import WITHOUT_EFFECT

pytestmark = pytest.mark.aot

# Two cores (v5p): the split is computed by XLA, ahead of the kernel.
CASES = [("decode", "v6e"), ("prefill", "v6e"), ("mixed", "v5p"), ("decode", "v5p")]
EVERY_CASE = list(itertools.product(("decode", "prefill", "mixed"), ("v4", "v5e", "v7x")))
FEATURES = {
    "float8": {"kv_dtype": "float8_e4m3fn", "k_scale": 0.5, "v_scale": 2.0, "q_scale": 0.5},
    "int8": {"kv_dtype": "int8"},
    "float32": {"q_dtype": "float32", "kv_dtype": "float32"},
    "fused": {"head_dim": 64, "num_kv_heads": 2, "has_sinks": True},
    "window": {"sliding_window": 100, "soft_cap": 30.0},
}
SHELL = {
    "JAX_ENABLE_X64": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}  # fmt: skip
CONTEXTS = {
    "none": [],
    "highest": [lambda: jax.default_matmul_precision("highest")],
    "high": [lambda: jax.default_matmul_precision("high")],
    "tensorfloat32": [lambda: jax.default_matmul_precision("tensorfloat32")],
    "x64": [lambda: jax.enable_x64(True)],
    "no jit": [lambda: jax.disable_jit()],
    "strict": [
        lambda: jax.numpy_dtype_promotion("strict"), lambda: jax.numpy_rank_promotion("raise")
    ],
    "all": [
        lambda: jax.default_matmul_precision("highest"), lambda: jax.enable_x64(True),
        lambda: jax.disable_jit(), lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.numpy_rank_promotion("raise"),
    ],
}  # fmt: skip


def hostile_environment(folder):
    return target.worker_environment(folder, " ".join(WITHOUT_EFFECT)) | SHELL


def compile_within(task):
    """In a worker: the schedule's digest of a launch that is traced inside contexts of a caller."""
    name, family, chip, changes = task
    problem = replace(PROBLEM, **changes)
    record, chip_record = load_family(family), load_chip(chip)
    config = record.default_config(problem, chip_record.target)
    with contextlib.ExitStack() as contexts:
        for make in CONTEXTS[name]:
            contexts.enter_context(make())
        compiled = lower.compile_call(record.call(problem, config, chip_record), chip_record)
    assert compiled.bundles is not None, compiled.detail
    return schedule_digest(compiled.bundles)


def digests(tasks, environment=target.worker_environment):
    with WorkerPool(num_workers=2, deadline_s=300, environment=environment) as pool:
        replies = list(pool.map_unordered("aot.test_settings:compile_within", tasks))
    failures = {tasks[reply.index]: reply.failure for reply in replies if reply.failure}
    assert not failures
    return [reply.value for reply in sorted(replies, key=lambda reply: reply.index)]


def tasks_of(name, cases, changes=None):
    return [(name, family, chip, changes or {}) for family, chip in cases]


def test_the_shells_and_the_callers_settings_change_no_schedule():
    calm = digests([*tasks_of("none", CASES), *tasks_of("all", CASES)])
    wanted = calm[: len(CASES)]
    assert len(set(wanted)) == len(CASES)
    assert calm[len(CASES) :] == wanted
    assert digests(tasks_of("none", CASES), hostile_environment) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
def test_nor_of_any_feature(feature):
    changes = FEATURES[feature]
    cases = [("decode", "v6e"), ("mixed", "v6e")]
    names = list(CONTEXTS)
    tasks = [(name, *case, changes) for case in cases for name in names]
    found = digests(tasks)
    for i, case in enumerate(cases):
        assert len(set(found[i * len(names) : (i + 1) * len(names)])) == 1, case


@pytest.mark.slow
def test_nor_on_any_chip():
    calm = digests([*tasks_of("none", EVERY_CASE), *tasks_of("all", EVERY_CASE)])
    wanted = calm[: len(EVERY_CASE)]
    assert calm[len(EVERY_CASE) :] == wanted
    assert digests(tasks_of("none", EVERY_CASE), hostile_environment) == wanted
