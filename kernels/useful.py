"""What a batch needs whoever computes it: bytes for MBU, FLOPs for MFU. No jax."""

from rpa_kernels.batch import Batch
from rpa_kernels.layout import dtype_bytes
from rpa_kernels.problem import Problem
from rpa_kernels.window import first_seen


def useful_bytes(family: str, problem: Problem, batch: Batch) -> int:
    """Bytes that no kernel could avoid moving: q, new K and V, seen cached K and V, outputs.

    Counts real heads and elements, not padding, and each token once however many query blocks
    look at it. With `update_kv_cache` new K and V are read from the operand and written to the
    cache, without it read from the cache.
    """
    kv_dim, rope_dim = 2 * problem.num_kv_heads * problem.head_dim, problem.rope_dim or 0
    if problem.is_latent:
        kv_dim = problem.head_dim + rope_dim
    token_kv = kv_dim * dtype_bytes(problem.kv_dtype)
    q_and_out = problem.num_q_heads * (2 * problem.head_dim + rope_dim)
    token_q = q_and_out * dtype_bytes(problem.q_dtype)
    token_lse = problem.num_q_heads * dtype_bytes("float32") if problem.return_lse else 0
    total = 0
    for i in batch.family_seqs(family):
        q_len, kv_len = batch.q_lens[i], batch.kv_lens[i]
        first = first_seen(kv_len - q_len, problem)
        written = q_len if problem.update_kv_cache else 0
        total += (kv_len - first + written) * token_kv + q_len * (token_q + token_lse)
    return total


def useful_flops(family: str, problem: Problem, batch: Batch) -> int:
    """FLOPs of both matrix products over the (query, key) pairs that see each other."""
    pairs = 0
    for i in batch.family_seqs(family):
        q_len, kv_len = batch.q_lens[i], batch.kv_lens[i]
        for q_pos in range(kv_len - q_len, kv_len):
            last = q_pos + 1 if problem.causal else kv_len
            pairs += last - first_seen(q_pos, problem)
    return pairs * 2 * problem.num_q_heads * (2 * problem.head_dim + (problem.rope_dim or 0))
