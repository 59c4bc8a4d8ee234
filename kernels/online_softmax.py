"""Attention over one block of keys, and how blocks are joined; on values, no references.

Scores are kept in base 2: `prepare_scale` folds log2(e) into the scale of the queries, so the
exponential is one `exp2` and no multiplication is left for each score. `m` is the running
maximum, `row_sum` (l in the literature) the running sum of exponentials, `acc` the running sum of
p @ V, all float32.
"""

import math

import jax
import jax.numpy as jnp

from rpa_kernels import lane_ops
from rpa_kernels.operands import matmul_dtype
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

LOG2_E = math.log2(math.e)

# Score of a masked position: far below any real score, and still finite, so that the difference
# of two of them is 0 and not NaN.
MASKED = -0.5 * float(jnp.finfo(jnp.float32).max)


def score_factor(problem: Problem) -> float:
    """Factor from q @ k as stored to the natural-log score, before any soft cap."""
    scale = problem.sm_scale * (problem.k_scale or 1.0)
    return scale * (problem.q_scale or 1.0)


def scale_q(q: jax.Array, problem: Problem, dtype: jnp.dtype) -> jax.Array:
    """Queries ready to multiply with stored keys, in `dtype`, their `operands.query_dtype`.

    Without `q_scale` the whole score factor is folded in here, once for each query element
    instead of once for each score. With it, the caller asked for queries on the grid of the
    stored keys, and the factor has to wait for the scores. So it has for queries that are
    multiplied as float8.
    """
    if problem.quantizes_q:
        # The public function divides in q's own dtype, which rounds once more.
        x = (q.astype(jnp.float32) / (problem.q_scale or 1.0)).astype(q.dtype).astype(jnp.float32)
        if problem.kv_dtype == "int8":
            return jnp.clip(jnp.round(x), -128, 127).astype(dtype)
        info = jnp.finfo(problem.kv_dtype)
        x = jnp.clip(x, float(info.min), float(info.max))
        return x.astype(problem.kv_dtype).astype(dtype)
    if dtype != matmul_dtype(problem):
        return q
    factor = score_factor(problem)
    factor = factor / problem.soft_cap if problem.soft_cap else factor * LOG2_E
    return (q.astype(jnp.float32) * factor).astype(dtype)


def qk(q: jax.Array, k: jax.Array, problem: Problem, *, along_lanes: bool = False) -> jax.Array:
    """Base-2 scores, float32[rows, keys], of q [rows, lanes] (`scale_q`) and k [keys, lanes].

    With `along_lanes` keys are along lanes: k is [lanes, keys].
    """
    s = _product(q, k, 0 if along_lanes else 1)
    if problem.quantizes_q or q.dtype != matmul_dtype(problem):
        factor = score_factor(problem)
        s = s * (factor / problem.soft_cap if problem.soft_cap else factor * LOG2_E)
    if problem.soft_cap is not None:
        s = (problem.soft_cap * LOG2_E) * jnp.tanh(s)
    return s


def exponentials(s: jax.Array, m: jax.Array, target: Target, dtype: jnp.dtype) -> jax.Array:
    """exp2(s - m) in `dtype`, the dtype that p @ V is multiplied in.

    The difference is taken in float32; with bfloat16 vector units the exponential itself then
    runs on packed pairs, half the slots. That rounds twice: the result, as the cast it replaces
    would, and before it the difference, by up to 2**-9 of itself, which moves p by at most
    2**-9 / e (where the difference is -1.44; p is at most 1). What the interpreter says of the
    error supposes an exponential that is right to one rounding (`watch.exp2`); how far the chip's
    instruction is from that has not been measured.
    """
    x = s - m
    if target.has_bf16_vector_units and dtype == jnp.bfloat16:
        return jnp.exp2(x.astype(jnp.bfloat16))
    return jnp.exp2(x)


def pv(p: jax.Array, v: jax.Array, *, along_lanes: bool = False) -> jax.Array:
    """P @ V: float32[rows, lanes] of p [rows, keys] and v [keys, lanes].

    With `along_lanes` v is [lanes, keys]. p is not rounded to the dtype of v, which may be float8:
    it would lose its accuracy.
    """
    return _product(p, v, 1 if along_lanes else 0)


def _product(a: jax.Array, b: jax.Array, b_axis: int) -> jax.Array:
    """Sums over the last axis of `a` and axis `b_axis` of `b`, in float32.

    It names its precision: otherwise that of the caller's jit counts, and the compiler refuses
    bfloat16 operands with any other than the default.
    """
    return jax.lax.dot_general(
        a, b, (((1,), (b_axis,)), ((), ())),
        precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32,
    )  # fmt: skip


def softmax_step(
    s: jax.Array,
    m_old: jax.Array,
    target: Target,
    dtype: jnp.dtype,
    *,
    most: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step of the online softmax: what a block of scores makes of the running maximum.

    The running sum becomes `alpha * l + sum(p)`, the accumulator `alpha * acc + p @ v`.

    Args:
      s: Base-2 scores, float32[rows, keys].
      m_old: Running maximum, float32[rows, 128] with equal lanes.
      target: What the chip can do.
      dtype: Dtype of p.
      most: What has the same maximum in each row as `s`, where that is at hand, [rows, any].

    Returns:
      (p [rows, keys] in `dtype`, m float32[rows, 128], alpha float32[rows, 128]): exponentials, the
      new maximum, and the factor for what was summed before.
    """
    m = jnp.maximum(m_old, jnp.max(s if most is None else most, axis=1, keepdims=True))
    p = exponentials(s, lane_ops.widen(m, s.shape[1]), target, dtype)
    return p, m, jnp.exp2(m_old - m)


def is_empty(m: jax.Array) -> jax.Array:
    """Whether nothing was seen, of running maxima."""
    return m <= MASKED


def log_sum_exp(m: jax.Array, row_sum: jax.Array) -> jax.Array:
    """Natural logarithm of a sum of exponentials of scores; minus infinity where nothing was seen.

    Args:
      m: Running maximum, float32[rows, 128] with equal lanes.
      row_sum: Sum of exp2(score - m), the same.
    """
    return jnp.where(is_empty(m), -jnp.inf, m * (1 / LOG2_E) + jnp.log(row_sum))


def merge_factors(m: jax.Array, other_m: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How the softmax states of two sets of keys become that of both.

    row_sum and acc become `alpha * own + beta * other`.

    Args:
      m: Running maximum of one, float32[rows, 128] with equal lanes.
      other_m: That of the other, the same.

    Returns:
      (m of both, alpha, beta), each float32[rows, 128].
    """
    m_new = jnp.maximum(m, other_m)
    return m_new, jnp.exp2(m - m_new), jnp.exp2(other_m - m_new)
