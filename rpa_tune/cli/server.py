"""The options that describe a serving engine, shared by `plan`, `audit`, `compile` and `advise`.

The options have the engine's own names.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from rpa_tune.cli.numbers import NumbersParam, number, number_or_none
from rpa_tune.cli.options import KV_DTYPE, KV_LAYOUT_OPTION, ChipName, ModelName, NameChoice
from rpa_tune.errors import UsageError
from rpa_tune.models.buckets import ENGINES, LEAST_TOKENS, TPU_INFERENCE
from rpa_tune.models.limits import DEFAULT_SEQS, DEFAULT_TOKENS
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan_servers import load_fleet

Command = TypeVar("Command", bound=Callable[..., None])

_NEEDED = {
    "--model": (ModelName(), "Model name, or the path of a config.json."),
    "--chip": (ChipName(), "Chip of the server."),
}
_OPTIONS = (
    click.option("--engine", default=TPU_INFERENCE, show_default=True, type=NameChoice(ENGINES),
                 help="Whose rules decide the shapes that are compiled."),
    click.option("--tp", default=1, show_default=True, type=number("tp"),
                 help="Devices that share the heads."),
    click.option("--dp", default=1, show_default=True, type=number("dp"),
                 help="Ranks of one process that share the sequences; attention data parallelism "
                 "counts."),
    click.option("--max-num-seqs", type=number("max_num_seqs"),
                 help="Maximum sequences per step of a rank; default: the engine's, "
                 f"{DEFAULT_SEQS} (tpu-inference) or what its page table holds (sglang-jax)."),
    click.option("--max-num-batched-tokens", type=number("max_num_batched_tokens"),
                 help="Maximum new tokens per step of a rank; default: the engine's, "
                 + " or ".join(f"{num} ({name})" for name, num in DEFAULT_TOKENS.items()) + "."),
    click.option("--max-model-len", default=8192, show_default=True, type=number("max_model_len"),
                 help="Maximum context length, tokens."),
    click.option("--num-speculative-tokens", default=0, show_default=True,
                 type=number_or_none("num_speculative_tokens"),
                 help="Draft tokens verified with every decode."),
    click.option("--decode-query-size", default=1, show_default=True,
                 type=number("decode_query_size"),
                 help="Maximum new tokens of a sequence in the decode slot of the distribution."),
    click.option("--padding-gap", default=0, show_default=True,
                 type=number_or_none("padding_gap"),
                 help="Tokens between token buckets; 0 for powers of two."),
    click.option("--token-buckets", default=(), type=NumbersParam("token_buckets"), metavar="N,...",
                 help="tpu-inference: tokens of further buckets, of all ranks; sglang-jax: all."),
    click.option("--min-token-bucket", default=LEAST_TOKENS, show_default=True,
                 type=number("min_token_bucket"), help="Tokens of the least bucket."),
    click.option("--bucket-seqs", is_flag=True,
                 help="The server also pads sequences to powers of two."),
    click.option("--uses-prefill", is_flag=True,
                 help="The server puts sequences into the prefill slot of the distribution."),
    click.option("--page-size", type=number("page_size"),
                 help="Tokens in one KV cache page; default: the engine's own choice."),
    click.option("--kv-dtype", default="bfloat16", show_default=True,
                 type=KV_DTYPE, help="Dtype of the KV cache."),
    KV_LAYOUT_OPTION,
)  # fmt: skip


def server_options(*, required: bool = True) -> Callable[[Command], Command]:
    """Adds the options that describe a server; `make_server` takes them.

    Args:
      required: Whether model and chip must be given.
    """

    def add(command: Command) -> Command:
        for option in reversed(_OPTIONS):
            command = option(command)
        for name, (kind, words) in reversed(_NEEDED.items()):
            command = click.option(name, required=required, type=kind, help=words)(command)
        return command

    return add


def make_server(options: Mapping[str, Any]) -> Server:
    """The server that the options describe; what was not given is the engine's choice."""
    return Server(**{name: value for name, value in options.items() if value is not None})


servers_option = click.option(
    "--servers", "fleet", type=click.Path(path_type=Path, dir_okay=False),
    help="File with a list of such flags, one entry a server: a fleet.",
)  # fmt: skip


def make_servers(fleet: Path | None, options: Mapping[str, Any]) -> tuple[Server, ...]:
    """The servers of a file, or the one of the options.

    Raises:
      UsageError: Neither, or both.
    """
    if fleet is None:
        for name in ("model", "chip"):
            if options[name] is None:
                raise UsageError(
                    f"--{name} is missing", hint="or name a file: --servers fleet.yaml"
                )
        return (make_server(options),)
    if options["model"] is not None or options["chip"] is not None:
        raise UsageError("--servers stands in the place of --model and --chip", where=str(fleet))
    return load_fleet(fleet)


def to_words(server: Server) -> list[str]:
    """The options of a server again, as words of a command line."""
    words = []
    for name, value in server.flags.items():
        words.append(f"--{name.replace('_', '-')}")
        joined = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [] if value is True else [joined]
    return words
