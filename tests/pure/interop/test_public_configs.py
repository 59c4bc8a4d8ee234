"""What public kernels are told, and what they refuse, rule by rule."""

import dataclasses

import pytest

from rpa_kernels.problem import Problem
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.tokamax import configs as tokamax
from rpa_tune.interop.public.tpu_inference import configs as tpu_inference
from rpa_tune.interop.public.tpu_inference.configs import Hd64Config, V3Config

V6E, V4 = load_chip("v6e").target, load_chip("v4").target
PROBLEM = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=256,
    max_num_seqs=64, pages_per_seq=16, num_pages=1024,
)  # fmt: skip
HD64 = dataclasses.replace(PROBLEM, head_dim=64)
V3 = V3Config(bq_sz=32, bkv_sz=512, bq_csz=16, bkv_csz=256)
BATCHED = BatchedConfig(bq_sz=64, bq_c_sz=32, bkv_sz=512, batch_size=2, n_buffer=2)
DECODE = dataclasses.replace(BATCHED, bq_sz=1, bq_c_sz=1)


def limit_of(bad):
    return None if bad is None else bad.limit


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, None),
        ({"bq_csz": 0}, "bq_csz"),
        ({"bq_csz": 24}, "bq_sz % bq_csz"),
        ({"bkv_csz": 384}, "bkv_sz % bkv_csz"),
        ({"bkv_sz": 512, "bkv_csz": 64}, "bkv_csz % page_size"),
        ({"bkv_sz": 1 << 20, "bkv_csz": 128}, "vmem_bytes"),
    ],
)
def test_v3_names_the_limit(changes, limit) -> None:
    config = dataclasses.replace(V3, **changes)
    assert limit_of(tpu_inference.check_v3(PROBLEM, config, V6E)) == limit


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({}, None), ({"bkv_sz": 96}, "bkv_sz % page_size"), ({"bq_sz": 0}, "bq_sz"),
     ({"bq_sz": 1 << 20}, "vmem_bytes")],
)  # fmt: skip
def test_hd64_names_the_limit(changes, limit) -> None:
    config = dataclasses.replace(Hd64Config(bq_sz=16, bkv_sz=256), **changes)
    assert limit_of(tpu_inference.check_hd64(HD64, config, V6E)) == limit


def test_two_kv_and_two_query_buffers_are_the_floor_of_scratch() -> None:
    # K and V of 8 heads, queries of 32; bfloat16.
    need = 2 * (512 * 2 * 8 * 128 * 2 + 32 * 32 * 128 * 2)
    assert tpu_inference.v3_scratch_bytes(PROBLEM, V3, V6E) == need
    for room, limit in ((need, None), (need - 1, "vmem_bytes")):
        target = dataclasses.replace(V6E, vmem_bytes=room)
        assert limit_of(tpu_inference.check_v3(PROBLEM, V3, target)) == limit


@pytest.mark.parametrize(
    ("problem", "target", "hint"),
    [
        (PROBLEM, V4, "the public kernels know v5e, v5p, v6e, v7x"),
        (HD64, V6E, "public-hd64 takes head_dim 64, the others do not"),
        (dataclasses.replace(PROBLEM, has_sinks=True), V6E, "only public-hd64 takes attention sin"),
        (dataclasses.replace(PROBLEM, causal=False), V6E, "with a causal mask"),
        (dataclasses.replace(PROBLEM, update_kv_cache=False), V6E, "a cache update"),
        (dataclasses.replace(PROBLEM, out_dtype="float32"), V6E, "the default output"),
        (dataclasses.replace(PROBLEM, attention_chunk_size=64), V6E, "no chunked local attention"),
        (dataclasses.replace(PROBLEM, kv_layout="seq_along_lane"), V6E, "layout that they default"),
        (dataclasses.replace(PROBLEM, return_lse=True), V6E, "return no log-sum-exp"),
    ],
)
def test_what_no_blocks_can_mend_is_refused_whatever_they_are(problem, target, hint) -> None:
    assert hint in tpu_inference.check_v3(problem, V3, target).hint
    assert hint in tpu_inference.check_batched(problem, BATCHED, target).hint


def test_hd64_alone_takes_sinks_and_batched_no_int8() -> None:
    sinks = dataclasses.replace(HD64, has_sinks=True)
    config = Hd64Config(bq_sz=16, bkv_sz=256)
    assert tpu_inference.check_hd64(sinks, config, V6E) is None
    assert "head_dim 64" in tpu_inference.check_hd64(PROBLEM, config, V6E).hint
    int8 = dataclasses.replace(PROBLEM, kv_dtype="int8")
    assert tpu_inference.check_batched(PROBLEM, BATCHED, V6E) is None
    assert "floating-point" in tpu_inference.check_batched(int8, BATCHED, V6E).hint
    assert tpu_inference.check_v3(int8, V3, V6E) is None


@pytest.mark.parametrize(
    ("case", "changes", "limit"),
    [
        ("mixed", {}, None),
        ("mixed", {"n_buffer": 5}, "n_buffer"),
        ("mixed", {"bq_sz": 24, "bq_c_sz": 8}, "bq_sz % 16"),
        ("mixed", {"bq_c_sz": 8}, "bq_c_sz % 16"),
        ("mixed", {"bq_c_sz": 24}, "bq_sz % bq_c_sz"),
        ("decode", {"bq_sz": 1, "bq_c_sz": 1}, None),
        ("decode", {}, "bq_sz"),
        ("decode", {"bq_sz": 1, "bq_c_sz": 1, "batch_size": 0}, "batch_size"),
    ],
)
def test_tokamax_names_the_limit(case, changes, limit) -> None:
    config = dataclasses.replace(BATCHED, **changes)
    assert limit_of(tokamax.check(case, PROBLEM, config, V6E)) == limit


def test_tokamax_takes_kv_blocks_of_whole_steps_whatever_the_page() -> None:
    small = dataclasses.replace(PROBLEM, page_size=16, pages_per_seq=128)
    config = dataclasses.replace(DECODE, bkv_sz=192)
    assert limit_of(tokamax.check("decode", small, config, V6E)) == "bkv_sz % 128"


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"has_sinks": True}, "no attention sinks"), ({"kv_dtype": "int8"}, "floating-point"),
     ({"causal": False}, "causal mask")],
)  # fmt: skip
def test_what_tokamax_refuses_it_has_no_choice_for(changes, hint) -> None:
    problem = dataclasses.replace(PROBLEM, **changes)
    assert hint in tokamax.check("decode", problem, DECODE, V6E).hint
    assert hint in tokamax.own_choice("decode", problem, V6E).hint
    assert "knows v5e" in tokamax.own_choice("mixed", PROBLEM, V4).hint


@pytest.mark.parametrize("case", ["decode", "mixed"])
def test_tokamaxs_axes_have_configs_that_it_takes(case) -> None:
    axes = load_family(f"public-tokamax-{case}").search_axes(PROBLEM, V6E)
    least = BatchedConfig(**{name: values[0] for name, values in axes.items()})
    assert tokamax.check(case, PROBLEM, least, V6E) is None
    for values in axes.values():
        assert list(values) == sorted(set(values))


def test_names_tell_what_is_compiled_apart() -> None:
    windowed = dataclasses.replace(PROBLEM, sliding_window=512)
    names = {
        tokamax.kernel_name(letter, problem, config)
        for letter in "dm"
        for problem in (PROBLEM, windowed)
        for config in (BATCHED, DECODE)
    }
    assert len(names) == 8
    assert tokamax.kernel_name("d", windowed, DECODE) == "RPAd-nhs-p128-b2-q1-k512-sw512"
