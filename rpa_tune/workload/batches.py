"""Weighted batches: what a config is judged on."""

import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rpa_kernels.batch import Batch
from rpa_tune.workload.batch_data import batch_from_data, weight_from_data

SCHEMA = "rpa-workload/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedBatch:
    """One batch and how often it is launched.

    Attributes:
      batch: Lengths of one launch.
      weight: Share of launches, above 0.
    """

    batch: Batch
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Batches that stand for what a server launches.

    Attributes:
      name: Preset name, file, or what a person called it.
      source: What it is and where it comes from, in words.
      batches: Batches with weights that sum to 1.
      digest: 16 hex digits over batches and weights: its identity in a store. Name and source are
        left out, so that renaming does not lose answers.
    """

    name: str
    source: str
    batches: tuple[WeightedBatch, ...]
    digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses weights that are no shares.

        Raises:
          ValueError: No batches, a weight that is not above 0, or a sum that is not 1.
        """
        if not self.batches:
            raise ValueError(f"workload {self.name!r} has no batches")
        if min(wb.weight for wb in self.batches) <= 0:
            raise ValueError(f"workload {self.name!r} has a weight that is not above 0")
        total = sum(wb.weight for wb in self.batches)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"workload {self.name!r} has weights that sum to {total}, not 1")
        # Made once: every candidate carries it.
        object.__setattr__(self, "digest", _digest(self.to_dict()["batches"]))

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in a batch."""
        return max(len(wb.batch.q_lens) for wb in self.batches)

    @property
    def max_num_tokens(self) -> int:
        """Most new tokens in a batch."""
        return max(sum(wb.batch.q_lens) for wb in self.batches)

    @property
    def decode_query_size(self) -> int:
        """Most new tokens of a sequence in the decode slot; 1 without any."""
        batches = [wb.batch for wb in self.batches]
        return max((max(b.q_lens[: b.num_decode], default=1) for b in batches), default=1)

    @property
    def max_context_tokens(self) -> int:
        """Longest context of a sequence."""
        return int(max(max(wb.batch.kv_lens) for wb in self.batches))

    def num_pages(self, page_size: int) -> int:
        """Pages that a KV cache needs to hold any of the batches."""
        return max(_pages_needed(wb.batch, page_size) for wb in self.batches)

    def for_family(self, *slots: str) -> "Workload":
        """The batches in which a family has sequences, weights renormalised.

        Sequences that other families serve stay in the batches: launches chain over one set of
        arrays, so a kernel sees (and skips) them in a server too.

        Args:
          slots: The sequences that the family serves: `decode`, `prefill` or `mixed`.

        Raises:
          ValueError: No batch launches the family.
        """
        kept = [wb for wb in self.batches if any(map(wb.batch.family_seqs, slots))]
        if not kept:
            raise ValueError(f"workload {self.name!r} never launches family {' or '.join(slots)!r}")
        total = plain_sum(wb.weight for wb in kept)
        return replace(self, batches=tuple(replace(wb, weight=wb.weight / total) for wb in kept))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` reads it back."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "source": self.source,
            "batches": [
                {
                    "weight": wb.weight,
                    "q_lens": list(wb.batch.q_lens),
                    "kv_lens": list(wb.batch.kv_lens),
                    "num_decode": wb.batch.num_decode,
                    "num_prefill": wb.batch.num_prefill,
                    "page_seed": wb.batch.page_seed,
                    "page_table": wb.batch.page_table and [list(r) for r in wb.batch.page_table],
                }
                for wb in self.batches
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Workload":
        """Reads the JSON form.

        Raises:
          ValueError: The data is not a workload; with the field and the rule.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r} is not {SCHEMA!r}")
        for key, kind, said in (("name", str, "a text"), ("source", str, "a text"),
                                ("batches", list, "a list")):  # fmt: skip
            if not isinstance(data.get(key), kind):
                raise ValueError(f"{key}: {said} is needed, got {data.get(key)!r}")
        batches = [_weighted_batch(i, entry) for i, entry in enumerate(data["batches"])]
        return cls(name=data["name"], source=data["source"], batches=tuple(batches))


def _digest(batches: Sequence[Mapping[str, Any]]) -> str:
    canonical = json.dumps(batches, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def plain_sum(weights: Iterable[float]) -> float:
    """The sum from left to right, each step rounded.

    `sum` of Python 3.12 carries what is rounded off, and that of 3.11 does not. A workload's digest
    is of its weights to the last bit, so a row made under one could not be checked under the other.
    """
    return functools.reduce(operator.add, weights, 0.0)


def combine(parts: Sequence[Workload], weights: Sequence[float]) -> Workload:
    """One workload that stands for several.

    Args:
      parts: What is combined.
      weights: Launches of each, relative to each other; all above 0.

    Returns:
      The batches of all parts in their order; a part's batches have its share of the launches.

    Raises:
      ValueError: No parts.
    """
    total = plain_sum(weights)
    shares = [weight / total for weight in weights]
    named = [(f"{100 * share:.3g} %", part) for part, share in zip(parts, shares, strict=True)]
    return Workload(
        name=" + ".join(f"{share} {part.name}" for share, part in named),
        source="; ".join(f"{share}: {part.source}" for share, part in named),
        batches=tuple(
            replace(wb, weight=share * wb.weight)
            for part, share in zip(parts, shares, strict=True)
            for wb in part.batches
        ),
    )


def _weighted_batch(index: int, entry: object) -> WeightedBatch:
    try:
        batch = batch_from_data(entry, also_known=("weight",))
        weight = entry.get("weight")  # type: ignore[attr-defined]
        return WeightedBatch(batch=batch, weight=weight_from_data(weight))
    except ValueError as error:
        raise ValueError(f"batches[{index}]: {error}") from error


def _pages_needed(batch: Batch, page_size: int) -> int:
    if batch.page_table is not None:
        return 1 + max(max(row) for row in batch.page_table)
    return sum(-(-kv // page_size) for kv in batch.kv_lens)
