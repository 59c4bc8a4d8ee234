"""How a problem is described."""

from dataclasses import replace

from rpa_kernels.problem import Problem
from rpa_tune.cli.problem_text import problem_text, problem_to_dict, reach_text

PROBLEM = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=96, page_size=64, max_num_tokens=16, max_num_seqs=4,
    pages_per_seq=10, num_pages=64, kv_dtype="float8_e4m3fn", sliding_window=1024,
)  # fmt: skip


def test_one_line_has_what_tells_problems_apart() -> None:
    assert problem_text(PROBLEM) == (
        "32 query and 8 KV heads of 96, bfloat16 queries, float8_e4m3fn cache, page size 64, "
        "window 1024"
    )
    assert problem_text(replace(PROBLEM, sliding_window=None)).endswith(", no window")
    assert reach_text(replace(PROBLEM, sliding_window=1)) == "window 1"
    chunked = replace(PROBLEM, sliding_window=None, attention_chunk_size=8192)
    assert reach_text(chunked) == "chunk 8192"
    assert problem_to_dict(chunked)["attention_chunk"] == 8192


def test_json_has_the_bytes_of_a_token_with_and_without_padding() -> None:
    data = problem_to_dict(PROBLEM)
    # K and V of 8 heads: of 96 elements, and of 128 lanes; one byte each.
    assert (data["kv_token_useful_bytes"], data["kv_token_bytes"]) == (16 * 96, 16 * 128)
    assert data["padding"].startswith("padding: 512 of the 2,048 bytes")
    assert (data["max_context_tokens"], data["window"]) == (640, 1024)
    whole = problem_to_dict(replace(PROBLEM, head_dim=128, sliding_window=None))
    assert (whole["padding"], whole["window"]) == ("", None)
    assert whole["kv_token_useful_bytes"] == whole["kv_token_bytes"]
