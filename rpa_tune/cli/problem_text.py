"""How a problem is described to people: what was resolved, and what its padding costs."""

from typing import Any

from rpa_kernels.problem import Problem
from rpa_tune.models.padding import bytes_by_layout, padding_note, token_bytes, useful_token_bytes


def problem_text(problem: Problem) -> str:
    """Heads, dtypes, page size and window; layout and decode's new tokens where not as usual."""
    kv_layout = f"{problem.kv_layout}, " if problem.is_seq_along_lane else ""
    heads = f"{problem.num_q_heads} query and {problem.num_kv_heads} KV heads of {problem.head_dim}"
    if problem.is_latent:
        heads = (
            f"{problem.num_q_heads} query heads on latents of {problem.head_dim} and rope rows of "
            f"{problem.rope_dim}, {problem.row_tokens} tokens a row of the cache"
        )
    most = problem.decode_query_size
    decode = f", 1 to {most} new tokens a decode" if most > 1 else ""
    return (
        f"{heads}, {problem.q_dtype} queries, {problem.kv_dtype} cache, "
        f"page size {problem.page_size}, {kv_layout}{reach_text(problem)}{decode}"
    )


def reach_text(problem: Problem) -> str:
    """`window 1024`, `chunk 8192`, or `no window`."""
    return problem.reach_text or "no window"


def problem_to_dict(problem: Problem) -> dict[str, Any]:
    """The same for `--json`, with the bytes that the padding costs."""
    return {
        "num_q_heads": problem.num_q_heads,
        "num_kv_heads": problem.num_kv_heads,
        "head_dim": problem.head_dim,
        **({"rope_dim": problem.rope_dim, "kv_packing": problem.row_tokens}
           if problem.is_latent else {}),
        "page_size": problem.page_size,
        "q_dtype": problem.q_dtype,
        "kv_dtype": problem.kv_dtype,
        "window": problem.sliding_window,
        "attention_chunk": problem.attention_chunk_size,
        "max_context_tokens": problem.max_context_tokens,
        "kv_layout": problem.kv_layout,
        "decode_query_size": problem.decode_query_size,
        "kv_token_bytes_by_layout": bytes_by_layout(problem),
        "kv_token_bytes": token_bytes(problem),
        "kv_token_useful_bytes": useful_token_bytes(problem),
        "padding": padding_note(problem),
    }  # fmt: skip
