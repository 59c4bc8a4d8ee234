"""Dtypes of what the products of attention take, as names. No jax."""

from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


def matmul_dtype(problem: Problem) -> str:
    """Dtype of q and p in their products: float32 if q or the cache is, else bfloat16."""
    return "float32" if "float32" in (problem.q_dtype, problem.kv_dtype) else "bfloat16"


def query_dtype(problem: Problem, target: Target) -> str:
    """Dtype of q in q @ K.T: `matmul_dtype`, or float8 as it came.

    Queries of latents come as float8 beside a cache of it, and are multiplied as they are where the
    MXU has float8 at a higher rate. Their product is exact; the factor that would else be in them
    is left for the scores (`online_softmax.qk`).
    """
    is_float8 = problem.q_dtype == problem.kv_dtype and problem.kv_dtype.startswith("float8")
    if problem.is_latent and is_float8 and target.has_fast_fp8_mxu:
        return problem.kv_dtype
    return matmul_dtype(problem)


def score_lanes(problem: Problem, target: Target) -> int:
    """Lanes of q @ K.T by what they cost an MXU: float8 beside float8 takes half the time."""
    is_fast = query_dtype(problem, target) != matmul_dtype(problem)
    return problem.k_lanes // 2 if is_fast else problem.k_lanes


def kv_dtype(problem: Problem, target: Target) -> str:
    """Dtype of K and V in the products: that of q and p, or float8 as it was stored.

    Where the MXU takes float8 beside bfloat16, widening each element would cost more than taking
    it out of its word.
    """
    wide = matmul_dtype(problem)
    keeps = problem.kv_dtype.startswith("float8") and target.has_fp8_mxu
    return problem.kv_dtype if keeps and wide == "bfloat16" else wide
