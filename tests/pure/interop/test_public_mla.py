"""tpu-inference's latent kernel: what it takes, its launches, its rows in the forms of engines."""

import dataclasses
import json

import pytest
from table_rows import LATENT, PROBLEM, make_row

from rpa_kernels.batch import Batch
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.export import export_kwargs
from rpa_tune.interop.public.family import least_cached_bytes
from rpa_tune.interop.public.tpu_inference import mla
from rpa_tune.interop.public.tpu_inference.mla import MlaDecodeConfig, MlaMixedConfig
from rpa_tune.interop.tpu_inference_tables import export_tables
from rpa_tune.tables.key import beyond_key

V6E, V4 = load_chip("v6e").target, load_chip("v4").target
DECODE = MlaDecodeConfig(bkv_sz=3072, batch_size=4)
MIXED = MlaMixedConfig(bq_sz=16, bkv_sz=1024, q_split=4)


@pytest.mark.parametrize(
    ("config", "changes", "limit"),
    [
        (DECODE, {}, None),
        (DECODE, {"batch_size": 0}, "batch_size"),
        (DECODE, {"bkv_sz": 1536}, "bkv_sz % page_size"),
        (DECODE, {"batch_size": 64}, "vmem_bytes"),
        (MIXED, {}, None),
        (MIXED, {"q_split": 3}, "bq_sz % q_split"),
        (MIXED, {"bq_sz": 512}, "vmem_bytes"),
    ],
)
def test_the_latent_kernel_names_the_limit(config, changes, limit):
    bad = mla.check(LATENT, dataclasses.replace(config, **changes), V6E)
    assert (bad and bad.limit) == limit


def test_latent_and_other_kernels_take_no_problem_of_the_other_kind():
    assert "latent caches" in mla.check(PROBLEM, DECODE, V6E).hint
    assert "know v5e" in mla.check(LATENT, DECODE, V4).hint
    for name in (
        "public-v3-decode",
        "public-hd64",
        "public-stacked-mixed",
        "public-tokamax-decode",
    ):
        family = load_family(name)
        config = family.config_type(**dict.fromkeys(family.config_type.__dataclass_fields__, 1024))
        assert family.check(LATENT, config, V6E) is not None, name
        assert family.default_config(LATENT, V6E).limit, name


def test_scratch_is_the_sum_of_the_kernels_buffers():
    # float8: two KV buffers of both rows, two of queries and output; float32 sums.
    keys, rows = (3072 + 2 * 32) * 640, 128
    turned = rows * (2 * 512 + 128)
    assert mla.scratch_bytes(LATENT, DECODE, V6E) == 4 * (
        2 * (keys + turned) + rows * (2 * 128 + 512) * 4
    )


def test_the_least_read_is_a_latent_and_a_rope_row_of_each_cached_token():
    batch = Batch(q_lens=(1, 1, 5), kv_lens=(101, 51, 25), num_decode=2)
    assert least_cached_bytes(LATENT, batch, ("decode",)) == 150 * (512 + 64)
    family = load_family("public-mla-mixed")
    traffic = family.traffic(LATENT, MIXED, batch)
    assert traffic.write_bytes == 5 * (128 * 512 + 576)


def test_keywords_need_both_cases():
    decode = make_row("public-mla-decode", problem=LATENT, configs=[dataclasses.asdict(DECODE)])
    mixed = make_row("public-mla-mixed", problem=LATENT, configs=[dataclasses.asdict(MIXED)])
    (call,) = json.loads(export_kwargs([decode, mixed]).text)["calls"]
    assert call["kwargs"] == {
        "num_kv_pages_per_block": [3, 1, 1],
        "num_queries_per_block": [1, 16, 16],
        "decode_batch_size": 4,
        "mixed_q_split": 4,
    }
    alone = export_kwargs([decode])
    assert json.loads(alone.text)["calls"] == []
    assert "both cases" in alone.left_out[0].why


def test_what_the_engine_does_not_look_up_is_left_out():
    config = [dataclasses.asdict(DECODE)]
    capped = dataclasses.replace(LATENT, soft_cap=30.0)
    rows = []
    for problem, chip in ((LATENT, "v6e"), (LATENT, "v7x"), (capped, "v6e")):
        row = make_row("public-mla-decode", problem=problem, chip=chip, configs=config)
        timed = dataclasses.replace(row.evidence, problem=beyond_key(problem, row.key))
        rows.append(dataclasses.replace(row, evidence=timed))
    export = export_tables(rows)
    assert export.exported == rows[:1]
    assert [one.why[:25] for one in export.left_out] == [
        "its key in the public tab", "the engine looks the kern",
    ]  # fmt: skip
