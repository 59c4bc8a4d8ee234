"""What the public functions launch: the metadata their kernels read, and schedules too long."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from table_rows import PROBLEM

from rpa_kernels.batch import Batch
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public import launches
from rpa_tune.interop.public.tpu_inference import functions

pytestmark = [pytest.mark.aot, pytest.mark.usefixtures("tpu_inference_root")]
LONG = replace(
    PROBLEM, page_size=128, pages_per_seq=256, num_pages=32768, max_num_tokens=128, max_num_seqs=128
)
BLOCKS = {
    "decode": {"bq_sz": 1, "bq_c_sz": 1, "bkv_sz": 512, "batch_size": 8, "n_buffer": 3},
    "prefill": {"bq_sz": 32, "bq_c_sz": 32, "bkv_sz": 512, "batch_size": 1, "n_buffer": 3},
}
STEPS, ACTUAL_STEPS = 3, 11  # operands of a batched kernel: the first by step, their number


@pytest.fixture(scope="module")
def bind(tpu_inference_root):
    return partial(
        functions.bind, "batched", tpu_inference_root, chip=load_chip("v6e"), problem=LONG,
        blocks=BLOCKS,
    )  # fmt: skip


def decode(kv_len, num_seqs):
    return Batch(q_lens=(1,) * num_seqs, kv_lens=(kv_len,) * num_seqs, num_decode=num_seqs)


@pytest.mark.slow
def test_metadata_is_what_the_tpu_interpreter_makes(bind, monkeypatch):
    call, batch = bind(), Batch(q_lens=(1, 1, 3), kv_lens=(700, 30, 900), num_decode=2)
    plain = call.pallas_calls(batch)

    def strictly(self, launch, arrays, mesh):
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.jit(launch(interpret=pltpu.InterpretParams()))(*arrays)

    monkeypatch.setattr(launches, "_run_whole", lambda kernel, *refs: kernel(*refs))
    monkeypatch.setattr(launches.Recorder, "_make_metadata", strictly)
    strict = call.pallas_calls(batch)
    assert [one.name for one in plain] == [one.name for one in strict]
    for case, found, wanted in zip(("decode", "prefill"), plain, strict, strict=True):
        num_steps = int(wanted.operands[ACTUAL_STEPS][0])
        assert found.operands[ACTUAL_STEPS] == num_steps > 0
        max_steps = len(wanted.operands[STEPS]) // BLOCKS[case]["batch_size"]
        for i in range(STEPS, ACTUAL_STEPS):
            words = len(wanted.operands[i]) // max_steps * num_steps
            np.testing.assert_array_equal(found.operands[i][:words], wanted.operands[i][:words])


def test_a_schedule_too_long_for_its_smem_is_refused_and_not_cut_off(bind):
    told_half, told_all = bind(), bind(smem_share=1.0)
    assert told_half.smem_share == 0.5
    fits = decode(8192, 128)  # 16 blocks of 128 sequences, 8 at a time: 256 steps
    for call in (told_half, told_all):
        assert call.pallas_calls(fits)[0].operands[ACTUAL_STEPS] == 256
    too_long = decode(14336, 128)  # 448 steps
    with pytest.raises(launches.ScheduleTooLongError):
        told_half.pallas_calls(too_long)
    decode_call, _ = told_all.pallas_calls(too_long)
    assert decode_call.operands[ACTUAL_STEPS] == 448
    assert len(decode_call.operands[STEPS]) >= 448 * BLOCKS["decode"]["batch_size"]
