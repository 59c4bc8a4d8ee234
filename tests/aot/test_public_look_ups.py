"""The engine's own look-up, out of the real wheel, finds what was exported."""

import importlib
import sys
import types
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner
from engine_wheels import SGLANG_JAX, fetched, sglang_jax_main
from table_rows import LATENT, PROBLEM, timed_row

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_tune.cli.main import cli
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import sglang_jax_tables
from rpa_tune.interop.public.tokamax import package as tokamax
from rpa_tune.interop.public.tokamax.families import TOKAMAX
from rpa_tune.interop.public.tokamax.table import shipped_calls
from rpa_tune.interop.public.tpu_inference import functions
from rpa_tune.interop.public.tpu_inference.arrays import abstract_arguments, num_leading
from rpa_tune.interop.public.tpu_inference.families import TPU_INFERENCE
from rpa_tune.interop.public.tpu_inference.package import WHEEL, why_untraceable
from rpa_tune.interop.tpu_inference_tables import export_tables

pytestmark = [pytest.mark.aot, pytest.mark.usefixtures("tpu_inference_root")]
HD64 = replace(PROBLEM, head_dim=64)
BATCH = Batch(q_lens=(1, 5), kv_lens=(40, 20), num_decode=1)
BATCHED = {"bq_sz": 1, "bq_c_sz": 1, "bkv_sz": 256, "batch_size": 4, "n_buffer": 3}


def chosen(name, problem):
    return TPU_INFERENCE[name].default_config(problem, load_chip("v6e").target)


@pytest.mark.parametrize("name", sorted(TPU_INFERENCE))
def test_the_functions_own_choice_is_a_config(name):
    family = TPU_INFERENCE[name]
    config = chosen(name, {"hd64": HD64, "mla": LATENT}.get(family.kernel, PROBLEM))
    if reason := why_untraceable(family.kernel):
        assert reason in str(config)
    else:
        assert isinstance(config, family.config_type)


def test_its_compute_block_is_no_larger_than_its_query_block():
    # Of 66 tokens the look-up gives 64 and 128, which the kernel refuses as arguments.
    family = TPU_INFERENCE["public-v3-mixed"]
    problem = replace(PROBLEM, max_num_tokens=66, num_q_heads=8, num_kv_heads=2)
    config = chosen(family.name, problem)
    assert config.bq_csz == config.bq_sz == 64
    assert not family.check(problem, config, load_chip("v6e").target)


# No window; one that is no power of two; one over the whole context; and sizes that the key rounds.
CHANGES = {
    "none": {}, "window 1000": {"sliding_window": 1000, "pages_per_seq": 128},
    "whole": {"sliding_window": PROBLEM.max_context_tokens},
    "sizes": {"max_num_tokens": 48, "max_num_seqs": 6, "pages_per_seq": 20, "num_q_heads": 6},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_exported_rows_are_what_the_wheel_then_chooses(tmp_path, monkeypatch, change):
    problem, hd64 = (replace(p, **CHANGES[change]) for p in (PROBLEM, HD64))
    rows = [
        timed_row("public-batched-decode", problem, configs=[BATCHED]),
        timed_row("public-hd64", hd64, configs=[{"bq_sz": 8, "bkv_sz": 48}]),
    ]
    before = [chosen("public-batched-decode", problem), chosen("public-hd64", hd64)]
    export = export_tables(rows)
    assert export.exported == rows
    (tmp_path / "exported_blocks.py").write_text(export.text)
    monkeypatch.syspath_prepend(tmp_path)
    for kernel in ("batched", "hd64"):
        package = functions.MODULES[kernel].rsplit(".", 1)[0]
        table = "tuned_params" if kernel == "batched" else "tuned_block_sizes_hd64"
        WHEEL.load(WHEEL.root, f"{package}.{table}")
    importlib.import_module("exported_blocks")
    after = [chosen("public-batched-decode", problem), chosen("public-hd64", hd64)]
    sys.modules.pop("exported_blocks")
    for row, old, new in zip(rows, before, after, strict=True):
        assert TPU_INFERENCE[row.key.family].config_to_dict(new) == row.configs[0]
        assert new != old


@pytest.fixture
def sglang_look_up(monkeypatch):
    """The main branch's own look-up, on a v6e."""
    root = sglang_jax_main()
    before = set(sys.modules)
    for name, members in (
        ("sgl_jax.srt.utils.jax_utils", {"get_device_name": lambda: "TPU v6e"}),
        ("sgl_jax.srt.utils.common_utils", {"next_power_of_2": layout.next_power_of_2}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    package = "sgl_jax.srt.kernels.ragged_paged_attention"
    module = SGLANG_JAX.load(root, f"{package}.tuned_block_sizes_v3")
    monkeypatch.setattr(module, "get_tpu_version", lambda: 6)
    yield module.get_tuned_block_sizes_v3
    for name in [name for name in sys.modules if name.startswith("sgl_jax")]:
        if name not in before:
            del sys.modules[name]


@pytest.mark.parametrize("change", CHANGES)
def test_exported_rows_are_what_sglang_jax_finds(sglang_look_up, change):
    problem = replace(PROBLEM, **CHANGES[change])
    blocks = {"d": (1, 256, 1, 128), "m": (32, 256, 16, 128)}
    names = ("bq_sz", "bkv_sz", "bq_csz", "bkv_csz")
    rows = [
        timed_row(f"public-v3-{case}", problem, configs=[dict(zip(names, sizes, strict=True))])
        for case, sizes in zip(("decode", "mixed"), blocks.values(), strict=True)
    ]

    def found():
        # As `_prepare_block_sizes` asks; a decode launch has as many tokens as sequences.
        return {
            stage: sglang_look_up(
                stage, problem.q_dtype, problem.kv_dtype, problem.num_q_heads,
                problem.num_kv_heads, problem.padded_head_dim, problem.page_size, tokens,
                sliding_window=problem.sliding_window,
            )
            for stage, tokens in (("d", problem.max_num_seqs), ("m", problem.max_num_tokens))
        }  # fmt: skip

    assert found() == {"d": None, "m": None}
    export = sglang_jax_tables.export_tables(rows)
    assert export.exported == rows
    exec(compile(export.text, "exported", "exec"), {})
    assert found() == blocks


def test_exported_rows_of_the_latent_kernel_are_what_the_engine_then_looks_up(
    tmp_path, monkeypatch
):
    # 77 sequences: the key of a row rounds them, the engine's table does not.
    problem = replace(LATENT, max_num_seqs=77, max_num_tokens=616, pages_per_seq=9)
    blocks = {
        "public-mla-decode": {"bkv_sz": 2048, "batch_size": 2},
        "public-mla-mixed": {"bq_sz": 32, "bkv_sz": 2048, "q_split": 8},
    }
    rows = []
    for name, config in blocks.items():
        rows.append(timed_row(name, problem, configs=[config]))
    before = [chosen(name, problem) for name in blocks]
    WHEEL.load(WHEEL.root, functions.MODULES["mla"].rsplit(".", 1)[0] + ".tuned_params")
    (tmp_path / "exported_mla.py").write_text(export_tables(rows).text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("exported_mla")
    sys.modules.pop("exported_mla")
    for (name, config), old in zip(blocks.items(), before, strict=True):
        new = chosen(name, problem)
        assert TPU_INFERENCE[name].config_to_dict(new) == config
        assert new != old
        assert chosen(name, replace(problem, max_num_seqs=78)) == old


def test_latent_arrays_are_in_the_order_of_the_functions_parameters():
    arrays = abstract_arguments("mla", LATENT)
    assert [array.shape for array in arrays] == [
        (128, 128, 512), (128, 128, 64), (128, 512), (128, 64), (512, 32, 32, 640),
        (64,), (512,), (65,), (3,),
    ]  # fmt: skip
    assert {array.dtype.name for array in arrays[:5]} == {"float8_e4m3fn"}
    assert arrays[num_leading("mla") - 1].shape == LATENT.kv_cache_shape
    assert abstract_arguments("v3", PROBLEM)[num_leading("v3") - 1].shape == PROBLEM.kv_cache_shape


def test_the_latent_function_makes_the_launches_that_its_families_are_for():
    problem = replace(LATENT, num_q_heads=8)
    blocks = {
        "decode": {"bkv_sz": 2048, "batch_size": 4},
        "mixed": {"bq_sz": 8, "bkv_sz": 1024, "q_split": 2},
    }
    call = functions.bind("mla", WHEEL.root, chip=load_chip("v6e"), problem=problem, blocks=blocks)
    batch = Batch(q_lens=(1,) * 7 + (5,), kv_lens=(40,) * 8, num_decode=7)
    made = {one.name: one.operands for one in call.pallas_calls(batch)}
    grids = []
    for case in ("decode", "mixed"):
        family = TPU_INFERENCE[f"public-mla-{case}"]
        config = family.config_from_dict(blocks[case])
        grids += [int(made[name][0][0]) for name in family.kernel_names(problem, config)]
    assert grids == [1, 3, 1]  # four sequences at once, three one by one, one with more tokens
    turned = [name for name in made if name.startswith("xpose")]
    assert len(made) == 3 + len(turned)
    assert len(turned) == 2


def test_the_batched_kernel_is_told_a_share_of_smem():
    from jax.experimental.pallas import tpu as pltpu

    chip = load_chip("v6e")
    told = {}
    for kernel in ("v3", "batched", "stacked"):
        module = WHEEL.load(WHEEL.root, functions.MODULES[kernel])
        with functions.pretend(chip, module):
            told[kernel] = pltpu.get_tpu_info().smem_capacity_bytes
    assert told["batched"] == told["v3"] * 0.5
    assert told["stacked"] == told["v3"] * 0.75


@pytest.mark.skipif(why_untraceable("stacked") == "", reason="this jax traces it")
def test_a_kernel_that_this_jax_does_not_trace_is_not_bound():
    with pytest.raises(UsageError, match=r"the stacked kernel .* does not trace"):
        functions.bind("stacked", WHEEL.root, chip=load_chip("v6e"), problem=PROBLEM, blocks=None)


def test_hd64_is_bound_to_what_the_function_would_choose():
    call = functions.bind("hd64", WHEEL.root, chip=load_chip("v6e"), problem=HD64, blocks=None)
    config = chosen("public-hd64", HD64)
    (name,) = [one.name for one in call.pallas_calls(BATCH)]
    assert name == TPU_INFERENCE["public-hd64"].kernel_name(HD64, config)


@pytest.mark.skipif(why_untraceable("stacked") != "", reason="this jax does not trace it")
@pytest.mark.parametrize(("kv_dtype", "share"), [("bfloat16", 0.75), ("float8_e4m3fn", 1.0)])
def test_a_function_that_refuses_its_share_of_smem_is_told_all_of_it(kv_dtype, share):
    problem = replace(
        PROBLEM, num_q_heads=32, num_kv_heads=8, page_size=128, pages_per_seq=128,
        max_num_tokens=2048, kv_dtype=kv_dtype,
    )  # fmt: skip
    call = functions.bind(
        "stacked", WHEEL.root, chip=load_chip("v6e"), problem=problem, blocks=None
    )
    assert call.smem_share == share


def test_a_plan_of_public_kernels_runs_in_a_process_that_has_no_wheel_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WHEEL, "_root", None)
    run = CliRunner().invoke(cli, ["sweep", "public_hd64", "--dry-run", "--json"])
    assert run.exit_code == 0, run.output
    assert WHEEL.root.is_dir()


def test_all_rows_that_tokamax_ships_are_read_and_fit():
    fetched(tokamax.WHEEL)
    calls = shipped_calls()
    # As its file says; its own look-up reads 3 for all.
    assert Counter(one.configs["mixed"].n_buffer for one in calls) == {2: 37, 3: 10}
    for one in calls:
        target = load_chip(one.chip).target
        for family in TOKAMAX.values():
            assert family.check(one.problem, one.configs[family.case], target) is None
