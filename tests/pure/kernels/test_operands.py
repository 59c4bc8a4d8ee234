"""Dtypes of the operands of products: all pairs of them."""

import dataclasses

import pytest

from rpa_kernels import operands
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=16, max_num_seqs=4,
    pages_per_seq=4, num_pages=16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype", "wide", "with_fp8_mxu"),
    [
        ("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "int8", "bfloat16", "bfloat16"),
        ("bfloat16", "float8_e4m3fn", "bfloat16", "float8_e4m3fn"),
        ("bfloat16", "float8_e5m2", "bfloat16", "float8_e5m2"),
        ("bfloat16", "float32", "float32", "float32"),
        ("float32", "bfloat16", "float32", "float32"),
        ("float32", "float8_e4m3fn", "float32", "float32"),
    ],
)
def test_products_are_as_wide_as_the_wider_operand_and_float8_stays_where_it_can(
    q_dtype, kv_dtype, wide, with_fp8_mxu
):
    problem = dataclasses.replace(PROBLEM, q_dtype=q_dtype, kv_dtype=kv_dtype)
    target = load_chip("v6e").target
    assert operands.matmul_dtype(problem) == wide
    assert operands.kv_dtype(problem, dataclasses.replace(target, has_fp8_mxu=False)) == wide
    assert operands.kv_dtype(problem, dataclasses.replace(target, has_fp8_mxu=True)) == with_fp8_mxu
