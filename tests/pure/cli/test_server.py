"""The options that describe a server, from words to a `Server` and back."""

from dataclasses import fields

import click
import pytest
from click.testing import CliRunner

from rpa_tune.cli.server import make_server, server_options, to_words
from rpa_tune.models.server import FLAGS, Server


def parse(*words: str) -> Server:
    found: list[Server] = []

    @click.command()
    @server_options()
    def command(**options) -> None:
        found.append(make_server(options))

    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


NEEDED = ("--model", "llama3-8b", "--chip", "v6e")
SERVERS = [
    Server(model="llama3-8b", chip="v6e"),
    Server(model="gemma3-12b", chip="v5p", tp=4, max_num_seqs=7, max_num_batched_tokens=33,
           max_model_len=1000, bucket_seqs=True, uses_prefill=True, page_size=256,
           kv_dtype="float8_e4m3fn", kv_layout="seq_along_lane", dp=2,
           num_speculative_tokens=3, decode_query_size=4, padding_gap=32, token_buckets=(8, 24),
           min_token_bucket=8),
    Server(model="llama3-8b", chip="v6e", engine="sglang-jax", page_size=128),
]  # fmt: skip


def test_defaults_of_the_options_are_those_of_the_server() -> None:
    assert parse(*NEEDED) == Server(model="llama3-8b", chip="v6e")


@pytest.mark.parametrize("server", SERVERS, ids=["default", "all", "sglang-jax"])
def test_words_of_a_server_are_that_server(server: Server) -> None:
    assert parse(*to_words(server)) == server


def test_every_field_of_a_server_is_an_option() -> None:
    words = {*to_words(SERVERS[1]), *to_words(SERVERS[2])}
    flags = {field.name for field in fields(Server)} - {"only_tokens", "only_families"}  # of plans
    assert flags == set(FLAGS)
    assert {f"--{name.replace('_', '-')}" for name in flags} <= words


def test_names_are_understood_however_they_are_spelt() -> None:
    server = parse("--model", "LLaMA3 8B", "--chip", "Trillium", "--kv-dtype", "fp8")
    assert (server.model, server.chip, server.kv_dtype) == ("llama3-8b", "v6e", "float8_e4m3fn")


@pytest.mark.parametrize("word", ["--tp", "--max-num-seqs", "--page-size", "--max-model-len"])
def test_numbers_below_one_are_refused(word: str) -> None:
    with pytest.raises(Exception, match=f"{word}=0 must be an integer"):
        parse(*NEEDED, word, "0")
