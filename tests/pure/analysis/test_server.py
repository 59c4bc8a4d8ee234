"""A server by its options: its shapes, and the problems of its layers."""

import pytest

from rpa_tune.analysis.server import Server
from rpa_tune.errors import UsageError

SERVER = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 16, "max_num_batched_tokens": 64}


def test_layers_have_the_servers_sizes_and_a_cache_for_all_sequences() -> None:
    (share,) = Server(**SERVER, tp=2, max_model_len=1000, kv_dtype="float8_e4m3fn").layers()
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


def test_the_engine_and_the_limits_are_the_same_shapes() -> None:
    for bucket_seqs in (False, True):
        server = Server(**SERVER, bucket_seqs=bucket_seqs)
        (share,) = server.layers()
        compiled = [b.problem for b in server.engine.buckets(share.problem)]
        assert [(p.max_num_tokens, p.max_num_seqs) for p in compiled] == [
            (shape.num_tokens, shape.num_seqs) for shape in server.limits.shapes()
        ]
    assert server.engine.families == ("decode", "mixed")
    assert Server(**SERVER, uses_prefill=True).engine.families == ("decode", "prefill", "mixed")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tp": 3}, "3"),
        ({"model": "llama33"}, "llama33"),
        ({"chip": "v66"}, "unknown chip 'v66'"),
        ({"page_size": 3}, "page_size=3 must be a multiple of 2"),
        ({"page_size": 2**20}, "page"),  # 4 GiB each, and a page for each of 16 sequences
    ],
)
def test_options_that_do_not_go_together(changes, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Server(**{**SERVER, **changes}).layers()
