"""The options that describe a serving engine, shared by `audit` and `compile`.

The options have the engine's own names.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import click

from rpa_kernels.layout import HEAD_ALONG_SUBLANE
from rpa_tune.analysis.server import Server
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import KV_DTYPE, KV_LAYOUT_OPTION, ChipName, ModelName

Command = TypeVar("Command", bound=Callable[..., None])

_OPTIONS = (
    click.option("--model", required=True, type=ModelName(),
                 help="Model name, or the path of a config.json."),
    click.option("--chip", required=True, type=ChipName(), help="Chip of the server."),
    click.option("--tp", default=1, show_default=True, type=number("tp"),
                 help="Devices that share the heads."),
    click.option("--max-num-seqs", default=256, show_default=True, type=number("max_num_seqs"),
                 help="Maximum sequences per step."),
    click.option("--max-num-batched-tokens", default=8192, show_default=True,
                 type=number("max_num_batched_tokens"), help="Maximum new tokens per step."),
    click.option("--max-model-len", default=8192, show_default=True, type=number("max_model_len"),
                 help="Maximum context length, tokens."),
    click.option("--bucket-seqs", is_flag=True,
                 help="The server also pads sequences to powers of two."),
    click.option("--uses-prefill", is_flag=True,
                 help="The server puts sequences into the prefill slot of the distribution."),
    click.option("--page-size", default=128, show_default=True, type=number("page_size"),
                 help="Tokens in one KV cache page."),
    click.option("--kv-dtype", default="bfloat16", show_default=True,
                 type=KV_DTYPE, help="Dtype of the KV cache."),
    KV_LAYOUT_OPTION,
)  # fmt: skip


def server_options(command: Command) -> Command:
    """Adds the options that describe a server; `Server` takes them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_words(server: Server) -> list[str]:
    """The options of a server again, as words of a command line."""
    words = []
    for name, value in asdict(server).items():
        # The usual layout goes without saying.
        if value not in (None, False, HEAD_ALONG_SUBLANE):
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return words
