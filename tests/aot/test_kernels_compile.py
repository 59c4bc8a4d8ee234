"""Kernels compile for every chip, use all operands, and move exactly what their account says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from never_read import operands_never_read

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_kernels.slots import slot_of
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import lower
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.compile.dumps import unpack_bundles
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate.simulate_task import TASK, SimulateTask
from rpa_tune.evaluate.understood import read_schedule
from rpa_tune.families.family import Call
from rpa_tune.families.own_call import abstract_inputs
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.parse import load_program

pytestmark = pytest.mark.aot

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")
LLAMA = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=512,
    max_num_seqs=16, pages_per_seq=32, num_pages=512, sm_scale=128**-0.5,
)  # fmt: skip
# Features whose code the compiler could refuse: data types, layouts, vector code.
FEATURES = {
    "one_head": {"num_q_heads": 8, "num_kv_heads": 1},
    "fp8": {"num_kv_heads": 4, "kv_dtype": "float8_e4m3fn", "k_scale": 0.5, "q_scale": 0.5},
    "int8_odd_heads_chunks": {
        "num_q_heads": 9, "num_kv_heads": 3, "kv_dtype": "int8", "attention_chunk_size": 600,
    },
    "fused_sinks": {"num_q_heads": 16, "num_kv_heads": 2, "head_dim": 64, "has_sinks": True},
    "wide_window_cap": {
        "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 256, "sliding_window": 500,
        "soft_cap": 30.0,
    },
    "float32_shared": {
        "num_q_heads": 4, "num_kv_heads": 2, "q_dtype": "float32", "kv_dtype": "float32",
        "update_kv_cache": False,
    },
    "small_pages_not_causal": {
        "num_q_heads": 4, "num_kv_heads": 2, "page_size": 16, "pages_per_seq": 256,
        "num_pages": 2048, "causal": False,
    },
    "along_lanes": {
        "num_q_heads": 12, "num_kv_heads": 1, "kv_dtype": "float8_e4m3fn", "page_size": 256,
        "kv_layout": "seq_along_lane",
    },
    "part_of_contexts": {
        "num_q_heads": 10, "num_kv_heads": 2, "has_sinks": True, "return_lse": True,
        "causal": False, "update_kv_cache": False,
    },
}  # fmt: skip
# Decode of a few new tokens: rows that fill vector registers, or not; a mask of its own.
SHORT = {
    "tree_odd_heads": {
        "num_q_heads": 10, "num_kv_heads": 2, "decode_query_size": 3, "has_tree_mask": True,
    },
    "few": {"decode_query_size": 4},
    "few_fused_sinks_lse": {**FEATURES["fused_sinks"], "decode_query_size": 4, "return_lse": True},
    "few_along_lanes": {**FEATURES["along_lanes"], "decode_query_size": 8, "sliding_window": 500},
    "few_fp8": {**FEATURES["fp8"], "decode_query_size": 4},
}  # fmt: skip
# Full layers of Gemma 4: E2B; 26B-A4B and 31B on one device, float8 among them.
HEADS_OF_512 = {
    "8_on_1": {"num_q_heads": 8, "num_kv_heads": 1},
    "16_on_2_fp8": {"num_q_heads": 16, "num_kv_heads": 2, "kv_dtype": "float8_e4m3fn"},
    "32_on_4": {"num_q_heads": 32, "num_kv_heads": 4},
}  # fmt: skip
DECODE_KV = (1, 127, 128, 129, 4096, 700, 513, 2, 1500)
LATENT = Problem(
    num_q_heads=16, num_kv_heads=1, head_dim=512, rope_dim=64, page_size=256, max_num_tokens=512,
    max_num_seqs=16, pages_per_seq=16, num_pages=256, sm_scale=0.07,
)  # fmt: skip
FLOAT8_ROWS = {"q_dtype": "float8_e4m3fn", "kv_dtype": "float8_e4m3fn", "kv_packing": 32}
BATCHES = {
    "decode": Batch(q_lens=(1,) * 9, kv_lens=DECODE_KV, num_decode=9),
    "mixed": Batch(q_lens=(1, 300, 4, 129), kv_lens=(9, 300, 1000, 2048), num_decode=1),
    "prefill": Batch(
        q_lens=(1, 128, 128), kv_lens=(9, 128, 1234), num_decode=1, num_prefill=2
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(num_workers=2, deadline_s=240) as pool:
        yield pool


def simulate(pool, cache_dir, named, batches=BATCHES, **changes):
    """Compiles and simulates {name: (family, problem, chip)}; checks every answer.

    Configs are the defaults with `changes`.
    """
    tasks = []
    for family, problem, chip in named.values():
        target = load_chip(chip).target
        record = load_family(family)
        config = record.default_config(problem, target)
        config = dataclasses.replace(config, **changes)
        assert record.check(problem, config, target) is None
        candidate = Candidate(
            family=record, problem=problem, config=config, chip=load_chip(chip), workload="test"
        )
        batch = batches[slot_of(family)]
        tasks.append(SimulateTask(candidate=candidate, batches=(batch,), cache_dir=cache_dir))
    names = list(named)
    for reply in pool.map_unordered(TASK, tasks):
        name = names[reply.index]
        assert reply.failure is None, (name, reply.failure)
        # OK means too that simulated DMA bytes and copies equal the account's.
        assert reply.value.status is Status.OK, (name, reply.value.status, reply.value.detail)
        (timeline,) = reply.value.timelines
        assert timeline.read_bytes > 0
        assert timeline.unknown == {}, name
        compiled = CompileCache(cache_dir).load(compile_key(tasks[reply.index].candidate))
        assert operands_never_read(read_schedule(compiled.bundles)) == set(), name


@pytest.mark.slow  # by default test_evaluate.py does it on a smaller batch
@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_every_chip_compiles_and_the_account_is_exact(pool, tmp_path, family):
    simulate(pool, tmp_path, {chip: (family, LLAMA, chip) for chip in CHIPS})


@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_kv_blocks_that_are_a_part_of_a_page_compile(pool, tmp_path, family):
    large = dataclasses.replace(LLAMA, page_size=2048, pages_per_seq=2, num_pages=32)
    chips = {chip: (family, large, chip) for chip in ("v4", "v6e")}
    simulate(pool, tmp_path, chips, bkv_sz=256, bkv_csz=256)


def test_prefill_compiles(pool, tmp_path):
    simulate(pool, tmp_path, {"v6e": ("prefill", LLAMA, "v6e")})


def test_decode_of_latents_moves_what_its_account_says(pool, tmp_path):
    rows = dataclasses.replace(LATENT, **FLOAT8_ROWS)
    simulate(pool, tmp_path, {"v7x": ("mla-decode", rows, "v7x")})


@pytest.mark.parametrize(
    ("changes", "chip"),
    [
        pytest.param({}, "v6e", id="words"),
        *(
            pytest.param(changes, chip, id=f"{name}_{chip}", marks=pytest.mark.slow)
            for name, changes in {"rows": FLOAT8_ROWS, "many_heads": {"num_q_heads": 128}}.items()
            for chip in ("v5p", "v6e", "v7x")
        ),
    ],
)
def test_decode_of_a_few_tokens_of_latents(pool, tmp_path, changes, chip):
    problem = dataclasses.replace(LATENT, decode_query_size=4, **changes)
    simulate_short(pool, tmp_path, {"latents": ("mla-decode", problem, chip)})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mla-decode", "mla-mixed"])
@pytest.mark.parametrize("changes", [{}, FLOAT8_ROWS, {"num_q_heads": 128, "kv_packing": 32}],
                         ids=["words", "float8_rows", "many_heads"])  # fmt: skip
def test_latents_on_every_chip(pool, tmp_path, family, changes):
    problem = dataclasses.replace(LATENT, **changes)
    chips = {chip: (family, problem, chip) for chip in ("v5p", "v6e", "v7x")}
    simulate(pool, tmp_path, chips)


def compile_chain(chip):
    """In a worker: decode then mixed as a whole program, their operands its arguments."""
    target = load_chip(chip).target
    decode, mixed = load_family("decode"), load_family("mixed")
    config = mixed.default_config(LLAMA, target)

    def chain(q, kv_new, kv_cache, *scalars):
        for family in (decode, mixed):
            q, kv_cache = family.launch(
                q, kv_new, kv_cache, *scalars,
                problem=LLAMA, config=family.default_config(LLAMA, target), target=target,
            )  # fmt: skip
        return q, kv_cache

    shapes = (LLAMA.q_shape, LLAMA.kv_new_shape, LLAMA.kv_cache_shape)
    arrays = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    compiled = lower.compile_call(
        Call(
            function=chain,
            arguments=(*arrays, *abstract_inputs(LLAMA)[4:]),
            kernel_name=mixed.kernel_name(LLAMA, config),
            donated=(0, 2),
        ),
        load_chip(chip),
    )
    return compiled.status, compiled.hbm_allocated_bytes


@pytest.mark.parametrize(
    "chip", ["v5p", *(pytest.param(c, marks=pytest.mark.slow) for c in ("v4", "v6e"))]
)
def test_launches_alone_are_a_program_that_copies_nothing(pool, chip):
    # Its results are the kernel's, which are kept in HBM and share the operands' buffers, also
    # where two cores write to them (v4, v5p).
    (reply,) = pool.map_unordered("aot.test_kernels_compile:compile_chain", [chip])
    assert reply.failure is None, reply.failure
    status, allocated_bytes = reply.value
    assert status is Status.OK
    shapes = (LLAMA.q_shape, LLAMA.kv_new_shape, LLAMA.kv_cache_shape)
    operands = [2 * math.prod(shape) for shape in shapes]
    # Beside them the scalar arrays, and what dividing the batch among two cores needs.
    assert sum(operands) <= allocated_bytes < sum(operands) + min(operands)


@pytest.mark.parametrize("family", ["decode", pytest.param("mixed", marks=pytest.mark.slow)])
def test_features_compile_on_v6e(pool, tmp_path, family):
    problems = {
        name: (family, dataclasses.replace(LLAMA, **changes), "v6e")
        for name, changes in FEATURES.items()
    }
    simulate(pool, tmp_path, problems)


@pytest.mark.parametrize("name", ["one_head", pytest.param("along_lanes", marks=pytest.mark.slow)])
def test_pages_are_copied_in_the_form_that_the_config_says(pool, tmp_path, name):
    problem = dataclasses.replace(LLAMA, **FEATURES[name])
    forms = []
    for form in (0, 1):
        cache = tmp_path / str(form)
        simulate(pool, cache, {name: ("decode", problem, "v7x")}, strided_copies=form)
        (dump,) = cache.rglob("*-final_bundles.txt.gz")
        program = load_program(unpack_bundles(dump, tmp_path))
        forms.append({
            copy.is_strided for bundle in program.bundles for copy in bundle.instructions
            if copy.op is Op.COPY and copy.detail == "hbm_to_vmem"
        })  # fmt: skip
    # Queries and new tokens come in one piece, whatever is said of pages.
    assert forms == [{False}, {False, True}]


def short(names, chip):
    return {n: ("decode", dataclasses.replace(LLAMA, **SHORT[n]), chip) for n in names}


def simulate_short(pool, cache_dir, problems):
    batch = Batch(q_lens=(1, 3, 2, 1, 3, 1, 3, 2, 3), kv_lens=(*DECODE_KV[:-2], 3, 1500),
                  num_decode=9)  # fmt: skip
    simulate(pool, cache_dir, problems, batches={"decode": batch})


def test_decode_of_a_few_tokens_compiles_on_v6e(pool, tmp_path):
    simulate_short(pool, tmp_path, short(["tree_odd_heads"], "v6e"))


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_decode_of_a_few_tokens_compiles_on_every_chip(pool, tmp_path, chip):
    simulate_short(pool, tmp_path, short(SHORT, chip))


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_heads_of_512_compile_on_every_chip(pool, tmp_path, family, chip):
    problems = {
        name: (family, dataclasses.replace(LLAMA, head_dim=512, **heads), chip)
        for name, heads in HEADS_OF_512.items()
    }
    simulate(pool, tmp_path, problems)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v7x"])
@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_features_compile_on_every_chip(pool, tmp_path, family, chip):
    problems = {
        name: (family, dataclasses.replace(LLAMA, **changes), chip)
        for name, changes in FEATURES.items()
    }
    simulate(pool, tmp_path, problems)
