"""Executables of an artefact, loaded and run on the CPU backend, and every way they are refused.

The kernels themselves do not compile for a CPU, so what is serialised here is another function of
the same arrays, which also shows that it, and nothing else, was run.
"""

import dataclasses
import functools
import hashlib
import io
import json
import logging
import pickle
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.artifact import build
from rpa_tune.artifact.build import Built, write_built
from rpa_tune.artifact.file import Artifact
from rpa_tune.dispatch import ragged_paged_attention, runtime
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.errors import ArtifactError
from rpa_tune.families.own_call import abstract_inputs
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.step import Step

PROBLEM = Problem(
    num_q_heads=4, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=32,
    max_num_seqs=4, pages_per_seq=4, num_pages=24, sm_scale=0.5,
)  # fmt: skip
SINKS = replace(PROBLEM, has_sinks=True)
# As if v6e were the CPU here: the artefact says so, and nothing else is pretended.
CHIP = dataclasses.replace(load_chip("v6e"), device_kinds=("cpu",))
BATCH = Batch(q_lens=(1, 1, 9), kv_lens=(1, 16, 40), num_decode=2)
STEP = Step.of_batch(BATCH)
PLAN = Dispatcher(CHIP, Tables(), on_miss="heuristic").plan(PROBLEM, STEP)


def stand_in(
    queries, keys, values, kv_cache, kv_lens, page_indices, cu_q_lens, distribution, *rest
):
    """Every argument matters, each in its own way."""
    total = kv_lens.sum() + 3 * page_indices.sum() + 5 * cu_q_lens.sum() + 7 * distribution.sum()
    total = total + sum(11 * x.sum() for x in rest)
    return queries * 2 + total.astype(queries.dtype), kv_cache + keys.mean() - values.mean()


@functools.cache
def executable(problem=PROBLEM):
    compiled = jax.jit(stand_in, donate_argnums=(0, 3), keep_unused=True)
    return compiled.lower(*abstract_inputs(problem)).compile().runtime_executable().serialize()


def make_arrays(problem=PROBLEM):
    rng = np.random.default_rng(0)
    shapes = [one.shape for one in abstract_inputs(problem)[:4]]
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]
    b = BATCH.arrays(problem)
    return [*arrays, b.kv_lens, b.page_indices, b.cu_q_lens, b.distribution]


@pytest.fixture
def path(tmp_path):
    write_built(tmp_path / "kernels.zip", CHIP, [Built(plan=PLAN, content=executable())])
    return tmp_path / "kernels.zip"


@pytest.fixture
def compiles(monkeypatch):
    """What is compiled here instead: the problems, in order of calls."""
    problems = []

    def compile_here(*arrays, problem, plan, interpret, page_runs):
        problems.append(problem)
        return arrays[0], arrays[3]

    monkeypatch.setattr(runtime, "_run_in_place", compile_here)
    return problems


@pytest.fixture
def warnings(caplog):
    """The dispatcher's warnings about artefacts."""
    caplog.set_level(logging.WARNING, "rpa_tune.dispatch")
    return lambda: [r.getMessage() for r in caplog.records if ".zip" in r.getMessage()]


def load(path, chip="v6e"):
    return load_dispatcher(chip, Tables(), "heuristic", path)


def edit_manifest(path, change):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["manifest.json"])
    change(data)
    members["manifest.json"] = json.dumps(data).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("on_device", [False, True])
def test_an_executable_runs_in_place_of_a_compile(path, compiles, warnings, on_device):
    dispatcher = load(path)
    arrays = make_arrays()
    expected = stand_in(*make_arrays())
    if on_device:
        arrays[4:] = map(jnp.asarray, arrays[4:])
    out, cache = dispatcher(*arrays, plan=PLAN, sm_scale=0.5)
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(cache, expected[1])
    assert [array.is_deleted() for array in arrays[:4]] == [True, False, False, True]
    assert compiles == []
    assert warnings() == []
    # And again on its own results, as an engine does.
    again = dispatcher(*make_arrays()[:3], cache, *arrays[4:], plan=PLAN, sm_scale=0.5)
    np.testing.assert_array_equal(
        again[1], stand_in(*make_arrays()[:3], expected[1], *arrays[4:])[1]
    )


def test_sinks_are_an_argument_of_their_own(tmp_path, compiles):
    plan = replace(PLAN, problem=SINKS)
    write_built(tmp_path / "s.zip", CHIP, [Built(plan=plan, content=executable(SINKS))])
    sinks = jnp.arange(4, dtype=jnp.float32)
    out, _ = load(tmp_path / "s.zip")(*make_arrays(), sinks, plan=plan, sm_scale=0.5)
    np.testing.assert_array_equal(out, stand_in(*make_arrays(), sinks)[0])
    assert compiles == []


def test_an_unplanned_call_finds_its_executable(path, compiles):
    out, _ = ragged_paged_attention(*make_arrays(), plan=load(path), sm_scale=0.5)
    np.testing.assert_array_equal(out, stand_in(*make_arrays())[0])
    assert compiles == []


def test_nothing_is_unpickled(path, monkeypatch, compiles):
    def refuse(*_, **__):
        raise AssertionError("pickle")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load(path)(*make_arrays(), plan=PLAN, sm_scale=0.5)
    assert compiles == []


MISMATCHES = {
    "chip v5e there, v6e here": lambda d: d.update(chip="v5e"),
    "device kind TPU v6 lite there, cpu here": lambda d: d.update(device_kind="TPU v6 lite"),
    "jax 0.1 there": lambda d: d["versions"].update(jax="0.1"),
    "libtpu 0.1 there": lambda d: d["versions"].update(libtpu="0.1"),
    "jaxlib none there": lambda d: d["versions"].pop("jaxlib"),
    "sources of decode 00 there": lambda d: d["sources"].update(decode="00"),
    "sources of launch none there": lambda d: d["sources"].pop("launch"),
    "sources of other 1 there, none here": lambda d: d["sources"].update(other="1"),
}


@pytest.mark.parametrize("message", MISMATCHES)
def test_what_was_made_for_elsewhere_is_one_warning_and_a_compile(
    path, compiles, warnings, message
):
    edit_manifest(path, MISMATCHES[message])
    dispatcher = load(path)
    assert dispatcher.compiled is None
    for _ in range(2):
        dispatcher(*make_arrays(), plan=PLAN, sm_scale=0.5)
    assert compiles == [PROBLEM, PROBLEM]
    (warning,) = warnings()
    assert "is not used, kernels are compiled here" in warning
    assert message in warning


def test_a_mismatch_names_everything_that_differs(path, warnings):
    edit_manifest(path, lambda d: d["versions"].update(jax="0.1", libtpu="0.1"))
    load(path)
    assert warnings()[0].count(" there, ") == 2


def test_a_plan_without_executable_is_compiled_and_the_warning_says_what_differs(
    path, compiles, warnings
):
    dispatcher = load(path)
    for _ in range(2):
        dispatcher(*make_arrays(), plan=PLAN, sm_scale=0.25)
    assert [problem.sm_scale for problem in compiles] == [0.25, 0.25]
    (warning,) = warnings()
    assert "nearest: sm_scale 0.5 instead of 0.25)" in warning
    decode = dispatcher.plan(PROBLEM, Step.of([1], [9], [1, 1, 1]))
    b = Batch(q_lens=(1,), kv_lens=(9,), num_decode=1).arrays(PROBLEM)
    rest = b.kv_lens, b.page_indices, b.cu_q_lens, b.distribution
    dispatcher(*make_arrays()[:4], *rest, plan=decode, sm_scale=0.5)
    assert "families decode+mixed instead of decode" in warnings()[1]


def test_a_caller_that_traces_gets_a_compile(path, compiles, warnings):
    dispatcher = load(path)
    step = jax.jit(lambda *arrays: dispatcher(*arrays, plan=PLAN, sm_scale=0.5))
    step(*make_arrays())
    step(*make_arrays())
    assert compiles == [PROBLEM]
    (warning,) = warnings()
    assert "cannot be part of a traced function (docs/serving.md" in warning


def test_the_interpreter_is_never_replaced(path, compiles):
    load(path)(*make_arrays(), plan=PLAN, sm_scale=0.5, interpret=True)
    assert compiles == [PROBLEM]


def test_bytes_that_are_no_executable_are_given_up_after_one_warning(tmp_path, compiles, warnings):
    write_built(tmp_path / "bad.zip", CHIP, [Built(plan=PLAN, content=executable()[:500])])
    dispatcher = load(tmp_path / "bad.zip")
    for _ in range(3):
        dispatcher(*make_arrays(), plan=PLAN, sm_scale=0.5)
    assert compiles == [PROBLEM] * 3
    (warning,) = warnings()
    assert "does not load" in warning


def test_an_executable_of_other_arrays_is_given_up_and_costs_no_array(tmp_path, compiles, warnings):
    write_built(tmp_path / "other.zip", CHIP, [Built(plan=PLAN, content=executable(SINKS))])
    dispatcher = load(tmp_path / "other.zip")
    for _ in range(2):
        arrays = make_arrays()
        dispatcher(*arrays, plan=PLAN, sm_scale=0.5)
        assert not any(array.is_deleted() for array in arrays[:4])
    assert len(compiles) == 2
    (warning,) = warnings()
    assert "does not run" in warning


def test_a_file_changed_since_it_was_opened_is_an_error(path):
    dispatcher = load(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        dispatcher(*make_arrays(), plan=PLAN, sm_scale=0.5)


def test_another_digest_than_expected_is_an_error(path):
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(Artifact(path, sha256=good)).compiled.plans == {PLAN}
    with pytest.raises(ArtifactError, match="sha256"):
        load(Artifact(path, sha256="0" * 64))


NO_PLANS = {
    "'mla'": lambda e: e["launches"][0].update(family="mla"),
    "missing ['bkv_sz']": lambda e: e["launches"][0]["config"].pop("bkv_sz"),
    "is not an integer": lambda e: e["launches"][0]["config"].update(bkv_sz="512"),
    "order": lambda e: e["launches"].reverse(),
    "head_dims": lambda e: e["problem"].update(head_dims=1),
    "num_pages=0": lambda e: e["problem"].update(num_pages=0),
    "soft_cap=[] must be a finite number": lambda e: e["problem"].update(soft_cap=[]),
    "page_size='16' must be a whole number": lambda e: e["problem"].update(page_size="16"),
}


@pytest.mark.parametrize("message", NO_PLANS)
def test_a_manifest_that_lists_no_plan_is_an_error(path, message):
    edit_manifest(path, lambda data: NO_PLANS[message](data["executables"][0]))
    with pytest.raises(ArtifactError, match="no launch plan") as caught:
        load(path)
    assert message in str(caught.value)


def test_the_same_builds_in_any_order_give_the_same_bytes(tmp_path):
    refused = replace(PLAN, problem=replace(PROBLEM, num_pages=99))
    built = [
        Built(plan=PLAN, content=b"one", seconds=1.0),
        Built(plan=replace(PLAN, problem=SINKS), content=b"two", was_kept=True),
        Built(plan=refused, content=b"", reason="out_of_memory: vmem"),
    ]
    one, sha256 = write_built(tmp_path / "1.zip", CHIP, built)
    other, _ = write_built(tmp_path / "2.zip", CHIP, built[::-1])
    assert one == other
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert Artifact(tmp_path / "1.zip", sha256=sha256).manifest == one
    assert len(one.executables) == 2
    (left_out,) = one.left_out
    assert (left_out["problem"]["num_pages"], left_out["reason"]) == (99, "out_of_memory: vmem")


def test_what_is_kept_is_for_the_same_sources_and_versions(tmp_path, monkeypatch):
    kept = build.Kept(tmp_path)
    key = build._key(PLAN)
    assert kept.load(key) is None
    kept.save(key, b"content")
    assert kept.load(key) == b"content"
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert kept.load(key) is None
    assert key != build._key(replace(PLAN, problem=SINKS))
    monkeypatch.setattr(build, "source_digests", lambda: {"decode": "changed"})
    assert key != build._key(PLAN)
