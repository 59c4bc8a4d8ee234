"""A server by its flags, `rpa_tune.models.server.Server`: what it compiles attention for. No jax.

The record that `plan`, `audit`, `compile` and `advise` share. Which shapes there are is the rule of
`buckets.py`, which layers the model has that of `catalog.py`; here are the flags that neither
decides, and the engine's own choice where a flag is left out.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rpa_kernels import FAMILIES
from rpa_kernels.ints import cdiv
from rpa_kernels.layout import HEAD_ALONG_SUBLANE, next_power_of_2
from rpa_kernels.names import did_you_mean
from rpa_kernels.problem import Problem
from rpa_kernels.slots import family_of
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.models.buckets import ENGINES, SGLANG_JAX, TPU_INFERENCE, Engine
from rpa_tune.models.catalog import Share, load_model, load_within, model_name, shares
from rpa_tune.models.flags import take_flags
from rpa_tune.models.limits import TABLE_ENTRIES, limits_of_sglang_jax, limits_of_vllm
from rpa_tune.models.model import LayerKind, Model
from rpa_tune.models.padding import token_bytes
from rpa_tune.models.roofline import Roofline

_MLA_PAGE = 1024
# Names of the flags, as people give them; the first ones are said even where they are the default.
_SAID = ("model", "chip", "tp", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
         "page_size", "kv_dtype")  # fmt: skip
FLAGS = (*_SAID, "kv_layout", "engine", "dp", "num_speculative_tokens", "decode_query_size",
         "padding_gap", "token_buckets", "min_token_bucket", "bucket_seqs",
         "uses_prefill")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Server(Engine):
    """A serving engine by its own options, and what it makes of them.

    Attributes:
      model: Name or path.
      chip: Chip name.
      tp: Devices that share the heads; KV heads are repeated when there are fewer. In tpu-inference
        they share the sequences instead where the model has latents (MLA).
      max_num_seqs: See `Engine`; 0 for the engine's default. sglang-jax runs fewer than it is told
        where their pages fill its table.
      max_num_batched_tokens: See `Engine`; 0 for the engine's default.
      kv_layout: Layout of the KV cache.
      page_size: Tokens in one page; 0 for the engine's own choice. None is 0 once it is made.
    """

    model: str
    chip: str
    tp: int = 1
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    page_size: int = 0
    kv_layout: str = HEAD_ALONG_SUBLANE

    def __post_init__(self) -> None:
        """Fills in what the engine chooses itself.

        Raises:
          UsageError: Options that the engine would not start with, or a page size of its choice
            that no kernel of ours takes.
        """
        take_flags(self, {"engine": ENGINES})
        object.__setattr__(self, "model", model_name(self.model))
        if self.engine == SGLANG_JAX and self.page_size in (0, 1):
            raise UsageError(
                f"{SGLANG_JAX} has pages of one token unless it is told, and no kernel takes those",
                hint="start it with --page-size 128, and give --page-size 128 here",
            )
        seqs, tokens = self._limits()
        object.__setattr__(self, "max_num_seqs", seqs)
        object.__setattr__(self, "max_num_batched_tokens", tokens)
        self._check()
        if not self.page_size:
            object.__setattr__(self, "page_size", self._own_page_size())
        if self.engine == SGLANG_JAX and self.max_num_batched_tokens % self.page_size:
            raise UsageError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be a multiple of "
                f"page_size={self.page_size}: {SGLANG_JAX} does not start otherwise",
                hint="its name there is --chunked-prefill-size",
            )

    def _limits(self) -> tuple[int, int]:
        given = (self.max_num_seqs, self.max_num_batched_tokens, self.max_model_len)
        if self.engine == SGLANG_JAX:
            return limits_of_sglang_jax(*given, self.page_size)
        return limits_of_vllm(*given)

    def _own_page_size(self) -> int:
        return own_page_size(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            uses_mla=_has_latents(self.model),
        )

    @property
    def attention_ranks(self) -> int:
        """Of the `tp` devices, those that have sequences of their own: all or one of them.

        Source: tpu-inference 0.32.0, `ShardingConfigManager.from_vllm_config`: as many ranks as the
        one KV head of a model with latents would be repeated.
        """
        if self.engine != TPU_INFERENCE or self.tp == 1:
            return 1
        try:
            return self.tp if _has_latents(self.model) else 1
        except UsageError:
            return 1  # `loaded` says what is wrong with the model

    def own_families(self) -> tuple[str, ...]:
        """The families of ours that its steps launch: for each kind of layers, those of its slots.

        Raises:
          UsageError: As `layers`.
        """
        kinds = {kind.is_latent for kind in self.loaded.served}
        launched = {family_of(slot, is_latent=kind) for kind in kinds for slot in self.families}
        return tuple(family for family in FAMILIES if family in launched)

    def head_devices(self, kind: LayerKind) -> int:
        """Devices that share the heads of a kind of layers."""
        return 1 if kind.is_latent and self.engine == TPU_INFERENCE else self.tp

    @property
    def ranks(self) -> int:
        """Ranks that share the sequences, those of attention included."""
        return self.dp * self.attention_ranks

    @property
    def flags(self) -> dict[str, Any]:
        """Name of each flag -> value; leaves out rare ones that are as they usually are."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in FLAGS}
        return {n: value for n, value in values.items() if n in _SAID or value != usual[n]}

    @property
    def loaded(self) -> Model:
        """The whole model, for contexts as long as the server has them.

        Raises:
          UsageError: An unknown model, or layers that no kernel family serves.
        """
        return load_within(self.model, self.pages_per_seq(self.page_size) * self.page_size)

    @property
    def loaded_chip(self) -> Chip:
        """The chip.

        Raises:
          UsageError: No such chip.
        """
        return load_chip(self.chip)

    @property
    def knobs(self) -> dict[str, Any]:
        """The `engine` section of a workload that this server serves; see `EngineKnobs`.

        Its pace is that of one rank by roofline (`Roofline.clock`), where the model's weights are
        known; else the workload's own stays.

        Raises:
          UsageError: As `layers`.
        """
        knobs: dict[str, Any] = {
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_model_len": self.max_model_len,
        }
        if self.num_speculative_tokens:
            knobs["num_speculative_tokens"] = self.num_speculative_tokens
        if self.engine == SGLANG_JAX:
            knobs["scheduler"] = "sglang"
        if not isinstance(weights := self.loaded.weights, str):
            roofline = Roofline(
                weights=weights, chip=self.loaded_chip, tp=self.tp, ranks=self.attention_ranks
            )
            knobs["step_time"] = roofline.clock(self.context_token_bytes)
        return knobs

    @property
    def context_token_bytes(self) -> int:
        """Bytes that one more token of context costs a step, on one device.

        Raises:
          UsageError: As `layers`.
        """
        return context_token_bytes(self.layers())

    def layers(self, **features: Any) -> list[Share]:
        """Every kind of layers that a kernel family serves, with the problem of one device.

        Its maxima are those of the largest step; `buckets` has the problems of all shapes.

        Args:
          **features: Further fields of `Problem`, or other values than these options give.

        Raises:
          UsageError: Heads that do not divide, layers that no kernel family serves, or sizes that
            no kernel has.
        """
        pages_per_seq = self.pages_per_seq(self.page_size)
        given = {
            "page_size": self.page_size,
            "max_num_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "pages_per_seq": pages_per_seq,
            "num_pages": pages_per_seq * self.max_num_seqs,
            "kv_dtype": self.kv_dtype,
            "kv_layout": self.kv_layout,
            "decode_query_size": self.decode_query_size,
        }
        found = shares(
            self.loaded, tp=self.tp, where="the server's options", engine=self.engine,
            **given | features,
        )  # fmt: skip
        for share in found:
            self.loaded_chip.require_room(
                page_bytes=share.problem.page_bytes, num_seqs=share.problem.max_num_seqs
            )
        return [self._within_hbm(share) for share in found]

    def _within_hbm(self, share: Share) -> Share:
        """The kind of layers with no more pages than half of HBM holds.

        A server's cache is what HBM has left, whatever all sequences at their longest would take,
        and the compiler refuses a launch whose cache alone is more than there is.
        """
        problem = share.problem
        most = max(
            self.loaded_chip.device_hbm_bytes // 2 // problem.page_bytes, problem.max_num_seqs
        )
        if problem.num_pages <= most:
            return share
        return replace(share, problem=replace(problem, num_pages=most))

    def problems(self) -> list[tuple[Share, Problem]]:
        """Every attention call that is compiled: each kind of layers in each shape.

        Raises:
          UsageError: As `layers`.
        """
        return [
            (share, bucket.problem)
            for share in self.layers()
            for bucket in self.buckets(share.problem)
        ]


def context_token_bytes(layers: Iterable[Share]) -> int:
    """Bytes that one more token of context costs a step of these layers, on one device.

    Those with a window or chunk read no more for it.
    """
    return sum(
        (share.kind.num_layers or 0) * token_bytes(share.problem)
        for share in layers
        if share.problem.reach_tokens is None
    )


def as_server(given: Server | Mapping[str, Any]) -> Server:
    """A server, or what its flags say: a mapping as an entry of a fleet file is one.

    Raises:
      UsageError: Neither, an unknown flag, or a missing or a bad one.
    """
    if isinstance(given, Server):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(
            f"a server is a Server, or a mapping of its flags; got {type(given).__name__}",
            hint="rpa_tune.Server(model=..., chip=...)",
        )
    for name in given:
        if name not in (*FLAGS, "tokens"):
            raise UsageError(
                f"unknown flag {name!r} of a server", hint=did_you_mean(name, (*FLAGS, "tokens"))
            )
    if missing := [name for name in ("model", "chip") if name not in given]:
        raise UsageError(f"missing {', '.join(missing)} in a server")
    others = {"tokens": "only_tokens"}
    return Server(**{others.get(name, name): value for name, value in given.items()})


def _has_latents(model: str) -> bool:
    return any(kind.is_latent for kind in load_model(model).kinds)


def own_page_size(*, max_model_len: int, max_num_seqs: int, uses_mla: bool = False) -> int:
    """Tokens in a page where tpu-inference is not told, as it chooses.

    Args:
      max_model_len: Longest context, tokens.
      max_num_seqs: Most sequences of a step.
      uses_mla: Whether the model has multi-head latent attention.

    Raises:
      UsageError: More sequences than its page table has entries; the engine divides by zero.

    Source:
      tpu-inference 0.32.0: `TpuPlatform.check_and_update_config` (platforms/tpu_platform.py) with
      `PallasAttentionBackend.get_page_size` and `get_min_page_size`
      (layers/vllm/backends/flash_attn.py), `PallasMLAttentionBackend.get_page_size`
      (flash_attn_mla.py).
    """
    if uses_mla:
        return _MLA_PAGE
    pages_of_seq = TABLE_ENTRIES // max_num_seqs
    if not pages_of_seq:
        raise UsageError(
            f"max_num_seqs={max_num_seqs} must be at most {TABLE_ENTRIES:,} where tpu-inference "
            "chooses the page size",
            hint="give --page-size, or fewer sequences",
        )
    sixteenth = next_power_of_2(max_model_len) // 16 if max_model_len <= 8192 else 16
    least = next_power_of_2(cdiv(max_model_len, pages_of_seq))
    return max(least, min(max(sixteenth, 16), 256))
