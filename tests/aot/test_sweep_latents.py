"""DeepSeek-V3 from a plan to a call: a sweep cut down, its rows, the audit, and a launch."""

import dataclasses

import numpy as np
import pytest
from aot.test_sweep import finish, start
from interpret.test_mla import INTERPRET, arguments

from rpa_kernels import reference
from rpa_kernels.batch import Batch
from rpa_kernels.slots import LATENT_FAMILIES
from rpa_tune.analysis.audit import audit
from rpa_tune.dispatch.attention import mla_ragged_paged_attention
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.dispatch.select import Source
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.step import Step

pytestmark = [pytest.mark.aot, pytest.mark.slow]

PLAN = """\
about: Latent attention of DeepSeek-V3, cut down.
servers:
  - {{model: deepseek-v3, chip: {chip}, tp: {tp}, max_num_seqs: 16, max_num_batched_tokens: 16,
     max_model_len: 1024, kv_dtype: float8_e4m3fn, tokens: [16]}}
workload:
  requests: {{count: 8, prompt_tokens: 300, output_tokens: 20}}
  engine: {{max_num_seqs: 16, max_num_batched_tokens: 256, max_model_len: 1024}}
  compress: {{batches: 2}}
space:
  mla-decode: {{bkv_sz: [256], bkv_csz: [256], seqs_per_step: [1], num_buffers: [2], bq_sz: [16]}}
  mla-mixed: {{bq_sz: [16], bq_csz: [16], bkv_sz: [256], bkv_csz: [256], num_buffers: [2],
    mxu_sums: [0]}}
search: {{simulate: 1, wave: 1, deadline: 1200s}}
"""
BATCH = Batch(q_lens=(1, 5), kv_lens=(300, 40), num_decode=1, page_seed=1)


@pytest.mark.parametrize(("chip", "tp"), [("v6e", 32), ("v7x", 8), ("v7x", 16)])
def test_a_model_with_latents_is_swept_audited_and_served(tmp_path, chip, tp):
    plan_file, tables = tmp_path / "plan.yaml", tmp_path / "swept"
    plan_file.write_text(PLAN.format(chip=chip, tp=tp))
    finish(start(tmp_path, "swept"), timeout_s=1800)
    rows = list(load_tables([tables]))
    assert {row.key.family for row in rows} == set(LATENT_FAMILIES)
    assert all("interpreted, 32/1 heads" in row.evidence.verified for row in rows)

    server = Server(
        model="deepseek-v3", chip=chip, tp=tp, max_num_seqs=16, max_num_batched_tokens=16,
        max_model_len=1024, kv_dtype="float8_e4m3fn",
    )  # fmt: skip
    found = audit(server, tables=tables).entries
    own = {e.family: e.coverage for e in found if e.problem.max_num_tokens == 16}
    assert own == dict.fromkeys(LATENT_FAMILIES, Source.EXACT)

    dispatcher = load_dispatcher(chip, tables)
    problem = build_studies(load_plan(plan_file))[0].problem
    problem = dataclasses.replace(problem, num_pages=8)
    plan = dispatcher.plan(problem, Step.of_batch(BATCH))
    assert plan.families == LATENT_FAMILIES
    assert all(launch.why.startswith("exact") for launch in plan.launches)
    named, operands = arguments(problem, BATCH)
    expected, expected_cache = reference.ragged_paged_attention(
        operands.queries, operands.keys, operands.values, operands.kv_cache, operands.arrays,
        problem,
    )  # fmt: skip
    out, cache = mla_ragged_paged_attention(
        **named, plan=dispatcher, sm_scale=problem.sm_scale, interpret=INTERPRET
    )
    out, used = np.asarray(out.swapaxes(0, 1), np.float32), slice(0, BATCH.num_tokens)
    # The output is float8: one rounding to 3 bits.
    np.testing.assert_allclose(
        out[used], np.asarray(expected[used], np.float32), rtol=0.13, atol=0.05
    )
    np.testing.assert_array_equal(
        np.asarray(cache).view(np.uint8), np.asarray(expected_cache).view(np.uint8)
    )
