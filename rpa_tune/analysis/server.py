"""A serving engine by its options: which shapes it compiles, for which layers of its model."""

from dataclasses import dataclass
from typing import Any

from rpa_kernels.layout import HEAD_ALONG_SUBLANE
from rpa_tune.dispatch.engine import Engine
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.buckets import Limits
from rpa_tune.models.catalog import Model, Share, load_model, shares


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A serving engine by its own options, and what it makes of them.

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
      kv_layout: Its layout.
    """

    model: str
    chip: str
    tp: int = 1
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192
    bucket_seqs: bool = False
    uses_prefill: bool = False
    page_size: int = 128
    kv_dtype: str = "bfloat16"
    kv_layout: str = HEAD_ALONG_SUBLANE

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
            "kv_layout": self.kv_layout,
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
