"""Small problems, batches and configs that the kernel tests share."""

from rpa_kernels.batch import Batch
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


def make_target(**changes):
    fields = {
        "chip": "v6e", "vmem_bytes": 128 << 20, "smem_bytes": 1 << 20, "mxu_size": 256,
        "num_cores": 1, "has_bf16_vector_units": True, "has_fp8_mxu": True,
        "has_result_buffers": False, "has_fast_fp8_mxu": False,
    }  # fmt: skip
    return Target(**{**fields, **changes})


V6E = make_target()
V7X = make_target(chip="v7x", vmem_bytes=64 << 20, has_result_buffers=True, has_fast_fp8_mxu=True)
V5E = make_target(chip="v5e", mxu_size=128, has_bf16_vector_units=False)


def make_problem(**changes):
    fields = {
        "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 128, "page_size": 16,
        "max_num_tokens": 48, "max_num_seqs": 7, "pages_per_seq": 16, "num_pages": 64,
        "sm_scale": 0.09,
    }  # fmt: skip
    return Problem(**{**fields, **changes})


def decode_config(**changes):
    fields = {"bkv_sz": 128, "bkv_csz": 128, "seqs_per_step": 2, "num_buffers": 3, "bq_sz": 4}
    return DecodeConfig(**{**fields, **changes})


def blockwise_config(**changes):
    fields = {
        "bq_sz": 16, "bq_csz": 16, "bkv_sz": 128, "bkv_csz": 128, "num_buffers": 2, "mxu_sums": 0,
    }  # fmt: skip
    return BlockwiseConfig(**{**fields, **changes})


# Lengths of 1, around page and block boundaries, and the longest context; a tail of others.
DECODE_BATCH = Batch(
    q_lens=(1, 1, 1, 1, 1, 1, 9), kv_lens=(1, 16, 17, 256, 129, 15, 20), num_decode=6
)
# A decode-like row, a whole context, speculative verification, a chunk with a prefix.
MIXED_BATCH = Batch(q_lens=(1, 1, 20, 4, 17), kv_lens=(20, 128, 20, 63, 150), num_decode=1)
PREFILL_BATCH = Batch(q_lens=(1, 16, 16, 5), kv_lens=(20, 160, 16, 29), num_decode=1, num_prefill=2)
