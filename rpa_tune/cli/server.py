"""The options that describe a serving engine, shared by `audit` and `compile`, and what they mean.

The options have the engine's own names.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click

from rpa_tune.buckets import Limits
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import KV_DTYPE, ChipName, ModelName
from rpa_tune.dispatch.engine import Engine
from rpa_tune.hw.chip import load_chip
from rpa_tune.models import Model, Share, load_model, shares

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
)  # fmt: skip


def server_options(command: Command) -> Command:
    """Adds the options that describe a server; `Server` takes them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A serving engine: one attribute an option, and what it makes of them.

    Attributes:
      model: Name or path.
      chip: Chip name.
      tp: Devices that share the heads.
      max_num_seqs: Maximum number of sequences in a step.
      max_num_batched_tokens: Maximum number of new tokens in a step.
      max_model_len: Longest context, tokens.
      bucket_seqs: See `Engine`.
      uses_prefill: See `Engine`.
      page_size: Tokens in one page.
      kv_dtype: Dtype name of the KV cache.
    """

    model: str
    chip: str
    tp: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    bucket_seqs: bool
    uses_prefill: bool
    page_size: int
    kv_dtype: str

    @property
    def engine(self) -> Engine:
        """Which shapes it compiles."""
        return Engine(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            bucket_seqs=self.bucket_seqs,
            uses_prefill=self.uses_prefill,
        )

    @property
    def limits(self) -> Limits:
        """Its limits, as a plan has them."""
        return Limits(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            bucket_seqs=self.bucket_seqs,
        )

    def to_words(self) -> list[str]:
        """The options again, as words of a command line."""
        words = []
        for name, value in asdict(self).items():
            if value not in (None, False):
                words.append(f"--{name.replace('_', '-')}")
                words += [] if value is True else [str(value)]
        return words

    def layers(self, **features: Any) -> list[Share]:
        """Every kind of layers that a kernel family serves, with its problem.

        Args:
          **features: Further fields of `Problem`, or other values than these options give.

        Raises:
          UsageError: Heads that do not divide, layers that no kernel family serves, or sizes that
            no kernel has.
        """
        pages_per_seq = self.limits.pages_per_seq(self.page_size)
        given = {
            "page_size": self.page_size,
            "max_num_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "pages_per_seq": pages_per_seq,
            "num_pages": pages_per_seq * self.max_num_seqs,
            "kv_dtype": self.kv_dtype,
        }
        found = shares(self.loaded, tp=self.tp, where="the server's options", **given | features)
        for share in found:
            load_chip(self.chip).require_room(
                page_bytes=share.problem.page_bytes, num_seqs=share.problem.max_num_seqs
            )
        return found

    @property
    def loaded(self) -> Model:
        """The whole model, for contexts as long as the server has them.

        Raises:
          UsageError: An unknown model, or layers that no kernel family serves.
        """
        pages_per_seq = self.limits.pages_per_seq(self.page_size)
        return load_model(self.model).within(pages_per_seq * self.page_size)
