"""Dtypes of what the products of attention take, as names. No jax."""

from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


def matmul_dtype(problem: Problem) -> str:
    """Dtype of q and p in their products: float32 if q or the cache is, else bfloat16."""
    return "float32" if "float32" in (problem.q_dtype, problem.kv_dtype) else "bfloat16"


def kv_dtype(problem: Problem, target: Target) -> str:
    """Dtype of K and V in the products: that of q and p, or float8 as it was stored.

    Where the MXU takes float8 beside bfloat16, widening each element would cost more than taking
    it out of its word.
    """
    wide = matmul_dtype(problem)
    keeps = problem.kv_dtype.startswith("float8") and target.has_fp8_mxu
    return problem.kv_dtype if keeps and wide == "bfloat16" else wide
