"""Limits that a server leaves to its engine, and those that the engine keeps anyway."""

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.models.limits import limits_of_vllm
from rpa_tune.models.server import Server


@pytest.mark.parametrize(
    ("given", "seqs", "tokens"),
    [
        ({}, 256, 8192),
        ({"max_num_batched_tokens": 64}, 64, 64),
        ({"max_num_batched_tokens": 20_000}, 256, 20_000),
        ({"max_num_seqs": 2, "max_model_len": 1024}, 2, 2048),
        ({"max_num_seqs": 512}, 512, 8192),
        ({"max_model_len": 16}, 256, 4096),
    ],
)
def test_limits_that_are_left_out_are_those_of_vllm(given, seqs, tokens) -> None:
    """Right values: tests/engines/test_limits.py asks vLLM itself."""
    server = Server(model="llama3-8b", chip="v6e", **given)
    assert (server.max_num_seqs, server.max_num_batched_tokens) == (seqs, tokens)
    given = {"max_num_seqs": 0, "max_num_batched_tokens": 0, "max_model_len": 8192, **given}
    assert limits_of_vllm(**given) == (seqs, tokens)
    assert Server(**server.flags) == server


def test_sglang_jax_runs_what_its_page_table_holds() -> None:
    """A table of 131,072 entries."""

    def seqs(**flags) -> int:
        return Server(model="llama3-8b", chip="v6e", engine="sglang-jax", **flags).max_num_seqs

    assert seqs(page_size=128) == 2048
    assert seqs(page_size=128, max_model_len=32768) == 512
    assert seqs(page_size=16, max_model_len=131072, max_num_seqs=256) == 16
    assert seqs(page_size=16, max_model_len=131072, max_num_seqs=4) == 4
    assert seqs(page_size=128, max_model_len=4096, max_num_seqs=3000) == 3000
    with pytest.raises(UsageError, match="memory that it finds free: 2,049 to 4,096 here") as e:
        seqs(page_size=128, max_model_len=4096)
    assert "--max-num-seqs 256" in e.value.hint
    with pytest.raises(UsageError, match="more pages of 2 tokens than 131,072"):
        seqs(page_size=2, max_model_len=2**19)
    with pytest.raises(UsageError, match="kv_dtype=float8_e4m3fn: sglang-jax has no such cache"):
        seqs(page_size=128, kv_dtype="fp8")
