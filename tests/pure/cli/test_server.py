"""The options that describe a server, from words to a `Server` and back."""

from dataclasses import fields

import click
import pytest
from click.testing import CliRunner

from rpa_tune.analysis.server import Server
from rpa_tune.cli.server import server_options, to_words


def parse(*words: str) -> Server:
    found: list[Server] = []

    @click.command()
    @server_options
    def command(**options) -> None:
        found.append(Server(**options))

    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


NEEDED = ("--model", "llama3-8b", "--chip", "v6e")
SERVERS = [
    Server(model="llama3-8b", chip="v6e"),
    Server(model="gemma3-12b", chip="v5p", tp=4, max_num_seqs=7, max_num_batched_tokens=33,
           max_model_len=1000, bucket_seqs=True, uses_prefill=True, page_size=256,
           kv_dtype="float8_e4m3fn", kv_layout="seq_along_lane"),
]  # fmt: skip


def test_defaults_of_the_options_are_those_of_the_server() -> None:
    assert parse(*NEEDED) == Server(model="llama3-8b", chip="v6e")


@pytest.mark.parametrize("server", SERVERS, ids=["default", "all"])
def test_words_of_a_server_are_that_server(server: Server) -> None:
    assert parse(*to_words(server)) == server


def test_every_field_of_a_server_is_an_option() -> None:
    words = to_words(SERVERS[1])
    assert {f"--{field.name.replace('_', '-')}" for field in fields(Server)} <= set(words)


def test_names_are_understood_however_they_are_spelt() -> None:
    server = parse("--model", "LLaMA3 8B", "--chip", "Trillium", "--kv-dtype", "fp8")
    assert (server.model, server.chip, server.kv_dtype) == ("llama3-8b", "v6e", "float8_e4m3fn")


@pytest.mark.parametrize("word", ["--tp", "--max-num-seqs", "--page-size", "--max-model-len"])
def test_numbers_below_one_are_refused(word: str) -> None:
    with pytest.raises(Exception, match=f"{word}=0 must be an integer"):
        parse(*NEEDED, word, "0")
