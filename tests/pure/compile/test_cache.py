"""The compile cache: whole or not there, keyed by what decides a schedule."""

import errno
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pure.evaluate.builders import candidate

from rpa_tune import files
from rpa_tune.candidate import Status
from rpa_tune.compile import cache as module
from rpa_tune.compile.cache import CompileCache, Compiled, compile_key, program_key
from rpa_tune.families import own


@pytest.fixture
def cache(tmp_path):
    return CompileCache(tmp_path / "cache")


def compiled(tmp_path, **changes):
    bundles = tmp_path / "1-k.1-01-final_bundles.txt"
    bundles.write_text("= control target key start\n" * 1000)
    return replace(
        Compiled(
            status=Status.OK, kernel_name="k", bundles=bundles, compile_s=1.5, vmem_bytes=4096
        ),
        **changes,
    )


def test_what_is_saved_is_loaded(cache, tmp_path):
    original = compiled(tmp_path)
    saved = cache.save("ab12", original)
    loaded = cache.load("ab12")
    assert loaded == replace(saved, from_cache=True)
    assert (loaded.compile_s, loaded.vmem_bytes) == (1.5, 4096)
    assert gzip.decompress(loaded.bundles.read_bytes()) == original.bundles.read_bytes()


def test_a_refusal_is_kept_without_a_schedule(cache):
    refused = Compiled(status=Status.OUT_OF_MEMORY, detail="vmem: the compiler needs 9, have 8")
    cache.save("cd", refused)
    assert cache.load("cd") == replace(refused, from_cache=True)


def test_what_was_never_saved_is_a_miss(cache):
    assert cache.load("ef") is None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_record_or_schedule_is_a_miss(cache, tmp_path, share):
    saved = cache.save("ab", compiled(tmp_path))
    record = next(saved.bundles.parent.glob("*.json"))
    for path in (record, saved.bundles):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert cache.load("ab") is None
        path.write_bytes(whole)
        assert cache.load("ab") is not None


def test_a_record_without_its_schedule_is_a_miss(cache, tmp_path):
    saved = cache.save("ab", compiled(tmp_path))
    saved.bundles.unlink()
    assert cache.load("ab") is None


def test_a_record_of_another_form_is_a_miss(cache, tmp_path):
    saved = cache.save("ab", compiled(tmp_path))
    record = next(saved.bundles.parent.glob("*.json"))
    data = json.loads(record.read_text())
    data["compiled"]["surprise"] = 1
    record.write_text(json.dumps(data))
    assert cache.load("ab") is None


def test_a_full_disk_leaves_nothing_half_written(cache, tmp_path, monkeypatch):
    original = compiled(tmp_path)

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.save("ab", original)
    assert cache.load("ab") is None
    assert not [path for path in Path(tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_key_refers_to_the_answer_of_the_same_program(cache, tmp_path):
    saved = cache.save("ab12", compiled(tmp_path))
    cache.refer("cd34", "ab12")
    assert cache.load("cd34") == cache.load("ab12") == replace(saved, from_cache=True)
    for to in ("cd34", "ef56", "aa", 7, None):  # itself, one of these, nowhere, nothing
        cache.refer("ef56", to)
        cache.refer("cd34", "ef56" if to == "cd34" else to)
        assert cache.load("cd34") is None
        assert cache.load("ef56") is None


def test_the_programs_key_follows_all_that_decides_its_schedule(monkeypatch):
    base = candidate()
    flagged = replace(base, libtpu_args="--xla_some=true")
    keys = [
        program_key("module", base, {}, "k"),
        program_key("modules", base, {}, "k"),
        program_key("module", candidate(chip="v5e"), {}, "k"),
        program_key("module", flagged, {}, "k"),
        program_key("module", base, {"XLA_FLAGS": "1"}, "k"),
        program_key("module", base, {}, "k2"),
    ]
    monkeypatch.setattr(own, "kernel_digest", lambda family: "0")
    assert program_key("module", base, {}, "k") == keys[0]  # sources play no part
    monkeypatch.setattr(module, "versions", lambda: {"jax": "0", "jaxlib": "0", "libtpu": "0"})
    keys.append(program_key("module", base, {}, "k"))
    assert len(set(keys)) == len(keys)


def test_the_key_follows_everything_but_the_workload():
    base = candidate()
    assert compile_key(replace(base, workload="other")) == compile_key(base)
    different = [
        candidate(chip="v5e"),
        candidate(bkv_sz=64, bkv_csz=64),
        replace(base, problem=replace(base.problem, sm_scale=0.5)),
    ]
    assert len({compile_key(c) for c in (base, *different)}) == 4


def test_the_key_follows_what_a_process_was_told_beside_a_workers_environment():
    settings = [{}, {"JAX_DISABLE_JIT": "1"}, {"JAX_DISABLE_JIT": "2"}, {"XLA_FLAGS": "1"}]
    assert compile_key(candidate()) == compile_key(candidate(), {})
    assert len({compile_key(candidate(), one) for one in settings}) == 4


def test_the_key_follows_compiler_and_kernel_versions(monkeypatch):
    before = compile_key(candidate())
    monkeypatch.setattr(module, "versions", lambda: {"jax": "0", "jaxlib": "0", "libtpu": "0"})
    other_compiler = compile_key(candidate())
    monkeypatch.setattr(own, "kernel_digest", lambda family: "0")
    assert len({before, other_compiler, compile_key(candidate())}) == 3
