"""A server by its options: its shapes, and the problems of its layers."""

import dataclasses

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.server import Server

SERVER = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 16, "max_num_batched_tokens": 64}


def test_layers_have_the_servers_sizes_and_a_cache_for_all_sequences() -> None:
    (share,) = Server(**SERVER, tp=2, max_model_len=1000, kv_dtype="float8_e4m3fn",
                      page_size=128).layers()  # fmt: skip
    problem = share.problem
    assert (problem.num_q_heads, problem.num_kv_heads, problem.head_dim) == (16, 4, 128)
    assert (problem.max_num_tokens, problem.max_num_seqs) == (64, 16)
    assert (problem.page_size, problem.pages_per_seq, problem.num_pages) == (128, 8, 128)
    assert problem.kv_dtype == "float8_e4m3fn"


def test_kinds_of_layers_have_a_problem_each() -> None:
    windows = [
        s.problem.sliding_window for s in Server(**{**SERVER, "model": "gemma3-12b"}).layers()
    ]
    assert sorted(windows, key=str) == [1024, None]


def test_features_come_before_the_options() -> None:
    (share,) = Server(**SERVER).layers(kv_dtype="int8", update_kv_cache=False)
    assert (share.problem.kv_dtype, share.problem.update_kv_cache) == ("int8", False)


def test_every_kind_of_layers_is_compiled_in_every_shape() -> None:
    for bucket_seqs in (False, True):
        server = Server(**{**SERVER, "model": "gemma3-12b"}, bucket_seqs=bucket_seqs)
        compiled = [
            (share.name, p.max_num_tokens, p.max_num_seqs) for share, p in server.problems()
        ]
        assert compiled == [
            (share.name, shape.num_tokens, shape.num_seqs)
            for share in server.layers()
            for shape in server.shapes()
        ]
    assert server.families == ("decode", "mixed")
    assert Server(**SERVER, uses_prefill=True).families == ("decode", "prefill", "mixed")


def test_kv_heads_are_repeated_where_there_are_fewer_than_devices() -> None:
    (share,) = Server(**SERVER, tp=16).layers()
    assert (share.problem.num_q_heads, share.problem.num_kv_heads) == (2, 1)
    with pytest.raises(UsageError, match="tp=12"):
        Server(**SERVER, tp=12).layers()


def test_sizes_are_those_of_one_rank() -> None:
    server = Server(**SERVER, dp=4, kv_dtype="float8_e4m3fn")
    assert [s.num_tokens for s in server.shapes()] == [4, 8, 16, 32, 64]
    assert {s.num_seqs for s in server.shapes()} == {16}
    # Another rank may have the tokens that made the bucket.
    assert {b.above_tokens for b in server.buckets(server.layers()[0].problem)} == {0}
    (share,) = server.layers()
    assert share.problem.num_pages == 16 * share.problem.pages_per_seq


def test_sglang_jax_has_to_be_told_its_pages() -> None:
    with pytest.raises(UsageError, match="pages of one token") as e:
        Server(model="llama3-8b", chip="v6e", engine="sglang-jax")
    assert "--page-size 128" in e.value.hint
    with pytest.raises(UsageError, match="pages of one token"):
        Server(model="llama3-8b", chip="v6e", engine="sglang-jax", page_size=1)
    server = Server(model="llama3-8b", chip="v6e", engine="sglang-jax", page_size=128)
    assert server.max_num_batched_tokens == 4096
    with pytest.raises(UsageError, match="multiple of page_size=128"):
        dataclasses.replace(server, max_num_batched_tokens=100)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tp": 3}, "3"),
        ({"model": "llama33"}, "llama33"),
        ({"chip": "v66"}, "unknown chip 'v66'"),
        ({"engine": "vllm"}, "engine='vllm' is not one of"),
        ({"dp": 3}, "dp=3 does not divide a bucket of 16 tokens"),
        ({"dp": 16, "padding_gap": 8}, "does not divide a bucket of 24 tokens"),
        ({"min_token_bucket": 12}, "power of two"),
        ({"engine": "sglang-jax", "page_size": 128, "dp": 2}, "dp=2 is an option of tpu-inference"),
        ({"max_num_seqs": 65}, "max_num_batched_tokens=64 must be at least max_num_seqs=65"),
        ({"max_num_seqs": 200_000, "max_num_batched_tokens": 200_000}, "at most 131,072"),
        ({"page_size": 3}, "page_size=3 must be a multiple of 2"),
        ({"page_size": 2**20}, "page"),  # 4 GiB each, and a page for each of 16 sequences
    ],
)
def test_options_that_do_not_go_together(changes, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Server(**{**SERVER, **changes}).layers()


def test_a_cache_is_no_more_than_half_of_hbm():
    """256 sequences of 8192 tokens would take 16 GiB of a layer, which no v5e has."""
    (whole, _) = Server(model="gemma3-12b", chip="v5e").layers()
    half = load_chip("v5e").device_hbm_bytes // 2
    assert half - whole.problem.page_bytes < whole.problem.num_pages * whole.problem.page_bytes
    assert whole.problem.num_pages * whole.problem.page_bytes <= half
    (roomy, _) = Server(model="gemma3-12b", chip="v6e").layers()
    assert roomy.problem.num_pages == roomy.problem.pages_per_seq * roomy.problem.max_num_seqs
