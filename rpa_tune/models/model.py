"""A model as attention sees it: kinds of layers, how many of each, and the problem of each kind.

Layers of one kind have the same heads, window, scale and cache, so one kernel serves them all.
What no kernel family can serve is a kind too, with the reason, so that it is not taken for served.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.models.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerKind:
    """Layers of a model that have the same attention.

    Attributes:
      num_layers: How many there are; None when the file does not say.
      num_q_heads: Query heads, of the model or of one device after `Model.at_tp`.
      num_kv_heads: KV heads, likewise.
      head_dim: Head size of queries and keys in elements.
      sm_scale: Factor on the logits.
      sliding_window_tokens: Tokens a query may look back, itself included, or None.
      chunk_tokens: A query sees keys of its own chunk of so many tokens only, or None.
      soft_cap: Cap on attention logits, or None.
      has_sinks: Whether heads have a sink logit.
      reads_other_cache: Whether they read the cache of an earlier layer and write none.
      rope_dim: Elements of a token's rope row, where the cache holds latents for all heads (MLA):
        `head_dim` is then that of the latent row, and there is one KV head. Else None.
      refusal: What they do that no kernel family can; empty when there is one.
    """

    num_layers: int | None
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    sm_scale: float
    sliding_window_tokens: int | None = None
    chunk_tokens: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False
    reads_other_cache: bool = False
    rope_dim: int | None = None
    refusal: str = ""

    @property
    def is_latent(self) -> bool:
        """Whether the cache holds latents."""
        return self.rope_dim is not None

    @property
    def label(self) -> str:
        """`full`, `window 1024`, `chunk 8192` or `latent`; `shared cache` where it has none."""
        reach = "latent" if self.is_latent else "full"
        if self.sliding_window_tokens:
            reach = f"window {self.sliding_window_tokens}"
        elif self.chunk_tokens:
            reach = f"chunk {self.chunk_tokens}"
        return f"{reach} shared cache" if self.reads_other_cache else reach

    def within(self, max_context_tokens: int) -> "LayerKind":
        """The same for contexts up to a length: what reaches beyond them has no effect."""
        window, chunk = (
            None if tokens is None or tokens >= max_context_tokens else tokens
            for tokens in (self.sliding_window_tokens, self.chunk_tokens)
        )
        return dataclasses.replace(self, sliding_window_tokens=window, chunk_tokens=chunk)

    def problem(self, **others: Any) -> Problem:
        """The attention of one of these layers.

        Args:
          **others: Sizes, dtypes and features, as fields of `Problem`; the kind's own may be
            given too, and win.

        Raises:
          UsageError: No kernel family serves them.
          ValueError: A size or dtype that no kernel has.
        """
        if self.refusal:
            raise UsageError(f"{self.label} layers: {self.refusal}")
        own = {
            "num_q_heads": self.num_q_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "sm_scale": self.sm_scale,
            "sliding_window": self.sliding_window_tokens,
            "attention_chunk_size": self.chunk_tokens,
            "soft_cap": self.soft_cap,
            "has_sinks": self.has_sinks,
            "update_kv_cache": not self.reads_other_cache,
            "rope_dim": self.rope_dim,
        }
        return Problem(**own | others)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What attention needs to know of a model.

    Attributes:
      name: Name in `catalog.yaml`, or the path of a `config.json`.
      source: Where the numbers are from.
      kinds: Its kinds of attention layers, those without a window first.
      other_layers: Layers that are no attention: what they are -> how many.
      checked: Where else the same numbers were read; empty for a file.
      notes: What had to be taken for granted, for people.
      weights: Its matrices beside the KV cache, or why they are not known.
    """

    name: str
    source: str
    kinds: tuple[LayerKind, ...]
    other_layers: Mapping[str, int] = field(default_factory=dict)
    checked: str = ""
    notes: tuple[str, ...] = ()
    weights: Weights | str = "no file says what they are"

    @property
    def served(self) -> tuple[LayerKind, ...]:
        """The kinds that have a kernel family."""
        return tuple(kind for kind in self.kinds if not kind.refusal)

    @property
    def unserved(self) -> tuple[LayerKind, ...]:
        """The kinds that have none."""
        return tuple(kind for kind in self.kinds if kind.refusal)

    @property
    def num_other(self) -> int:
        """How many layers are no attention."""
        return sum(self.other_layers.values())

    def name_of(self, kind: LayerKind) -> str:
        """What tells a kind from the model's others, for people and for `--layers`."""
        alike = [one for one in self.kinds if one.label == kind.label]
        names = [kind.label]
        for text in (_heads, _head_dim, _scale):
            if len({text(one) for one in alike}) > 1:
                names.append(text(kind))
                alike = [one for one in alike if text(one) == text(kind)]
        return " ".join(names)

    @property
    def layers_text(self) -> str:
        """One line for people: every kind, the layers that are no attention, and how many."""
        parts = [
            _counted(kind.num_layers, self.name_of(kind))
            + (f" (not served: {kind.refusal})" if kind.refusal else "")
            for kind in self.kinds
        ]
        parts += [
            _counted(num, f"{name} (no attention)") for name, num in self.other_layers.items()
        ]
        return ", ".join(parts)

    def within(self, max_context_tokens: int) -> "Model":
        """The same for contexts up to a length; kinds that are alike there become one.

        Raises:
          UsageError: No kernel family serves any of its layers.
        """
        kinds = merge_kinds(kind.within(max_context_tokens) for kind in self.kinds)
        model = dataclasses.replace(self, kinds=kinds)
        if not model.served:
            raise UsageError(
                f"no kernel family serves any attention layer of {self.name}: {model.layers_text}"
            )
        return model

    def at_tp(self, tp: int, *, splits_latents: bool = False) -> "Model":
        """The share of one device under tensor parallelism; KV heads are repeated when few.

        Args:
          tp: Devices that share the matrices.
          splits_latents: Whether they share the heads of layers with latents, too; else each
            device has all of these heads, for its share of the sequences.

        Raises:
          UsageError: Heads of a kind do not divide.
        """
        split = [kind for kind in self.kinds if splits_latents or not kind.is_latent]
        for kind in split:
            if not _allows(kind, tp):
                most = max(kind.num_q_heads for kind in split)
                allowed = [n for n in range(1, most + 1) if all(_allows(kind, n) for kind in split)]
                raise UsageError(
                    f"{self.name} cannot run at tp={tp}: {kind.num_q_heads} query heads and "
                    f"{kind.num_kv_heads} KV heads must divide evenly",
                    hint=f"use one of {allowed}",
                )
        return dataclasses.replace(
            self,
            kinds=tuple(
                dataclasses.replace(
                    kind,
                    num_q_heads=kind.num_q_heads // tp,
                    num_kv_heads=max(1, kind.num_kv_heads // tp),
                )
                if kind in split
                else kind
                for kind in self.kinds
            ),
        )

    def pick(self, layers: str | None = None, windowed: bool | None = None) -> LayerKind:
        """One kind that is served.

        Args:
          layers: Its name (`name_of`, with spaces or hyphens); None for any.
          windowed: Whether it has a sliding window; None for one without, unless there is none.

        Raises:
          UsageError: No such kind, with those there are.
        """
        kinds = [
            kind
            for kind in self.kinds
            if (layers is None or _plain(self.name_of(kind)) == _plain(str(layers)))
            and (windowed is None or bool(kind.sliding_window_tokens) == windowed)
            and not kind.refusal
        ]
        if not kinds:
            asked = [f"layers={layers!r}"] if layers is not None else []
            asked += [f"windowed={windowed}"] if windowed is not None else []
            such = f" for {' and '.join(asked)}" if asked else ""
            raise UsageError(
                f"{self.name} has no layers that a kernel family serves{such}",
                hint=f"it has {self.layers_text}",
            )
        return min(kinds, key=lambda kind: bool(kind.sliding_window_tokens))


def merge_kinds(kinds: Iterable[LayerKind]) -> tuple[LayerKind, ...]:
    """Kinds that differ in their number only become one.

    Returns:
      Those without a window or chunk first, those that read another cache last.
    """
    counts: dict[LayerKind, int | None] = {}
    for kind in kinds:
        bare = dataclasses.replace(kind, num_layers=None)
        before = counts.get(bare, 0)
        known = before is not None and kind.num_layers is not None
        counts[bare] = before + kind.num_layers if known else None  # type: ignore[operator]
    merged = (dataclasses.replace(kind, num_layers=num) for kind, num in counts.items())
    return tuple(
        sorted(
            merged,
            key=lambda kind: (
                kind.reads_other_cache,
                kind.chunk_tokens or 0,
                kind.sliding_window_tokens or 0,
            ),
        )
    )


def _counted(num: int | None, name: str) -> str:
    return name if num is None else f"{num} {name}"


def _heads(kind: LayerKind) -> str:
    return f"{kind.num_q_heads}/{kind.num_kv_heads} heads"


def _head_dim(kind: LayerKind) -> str:
    return f"head {kind.head_dim}"


def _scale(kind: LayerKind) -> str:
    return f"scale {kind.sm_scale:.4g}"


def _plain(name: str) -> str:
    return name.replace("-", " ").strip()


def _allows(kind: LayerKind, tp: int) -> bool:
    """Whether the heads divide over so many devices, or few KV heads over groups of them."""
    if tp < 1 or kind.num_q_heads % tp:
        return False
    return kind.num_kv_heads % tp == 0 or tp % kind.num_kv_heads == 0
