"""The key of a table row: the only bucketing code in the repository.

The writer, the reader, lint and the dispatcher all call `tuning_key`; no other code rounds. The key
holds what changes which config is best. It leaves out what does not (number of pages in the
cache, softmax scale, mask value, the value of a soft cap or of a scale).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_kernels.slots import slot_of

# Fields that came after the first rows, and what they are in those: see `problem.ADDED_FIELDS`.
ADDED_FIELDS: Mapping[str, Any] = {
    "attention_chunk_tokens": 0,
    "kv_layout": layout.HEAD_ALONG_SUBLANE,
    "return_lse": False,
    "decode_query_size": 1,
    "rope_dim": 0,
    "kv_packing": 0,
}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class TuningKey:
    """A bucketed problem on a chip, for one family. Fields are in sorting order of a table.

    Attributes:
      chip: Name in the chip table.
      family: Kernel family.
      q_dtype: Dtype name of queries.
      kv_dtype: Dtype name of the KV cache.
      out_dtype: Dtype name of the output, default resolved.
      num_q_heads: Query heads on this device, exact.
      num_kv_heads: KV heads on this device, exact.
      head_dim: Head size padded to whole lanes; 64 stays, because K and V then share a row. As
        padded in the cache where tokens lie along lanes.
      page_size: Tokens in one page, exact.
      max_num_tokens: Rounded up to a power of two.
      max_num_seqs: Rounded up to a power of two.
      max_context_tokens: `pages_per_seq * page_size`, rounded up to a power of two.
      sliding_window_tokens: Rounded up to a power of two; 0 without a window.
      causal: As in the problem.
      update_kv_cache: As in the problem.
      has_soft_cap: Whether logits are capped.
      has_sinks: As in the problem.
      has_scales: Whether any of the three scales is given.
      attention_chunk_tokens: Rounded up to a power of two; 0 without chunks.
      kv_layout: As in the problem.
      return_lse: As in the problem.
      decode_query_size: Rounded up to a power of two, as decode computes them; 1 for families that
        serve no decode sequences.
      rope_dim: Rope row of latent attention, exact; 0 without.
      kv_packing: Tokens of a row of a latent cache, exact; 0 without.
    """

    chip: str
    family: str
    q_dtype: str
    kv_dtype: str
    out_dtype: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    max_num_tokens: int
    max_num_seqs: int
    max_context_tokens: int
    sliding_window_tokens: int
    causal: bool
    update_kv_cache: bool
    has_soft_cap: bool
    has_sinks: bool
    has_scales: bool
    attention_chunk_tokens: int = 0
    kv_layout: str = layout.HEAD_ALONG_SUBLANE
    return_lse: bool = False
    decode_query_size: int = 1
    rope_dim: int = 0
    kv_packing: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without chip and family, which a table file states once."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("chip", "family")
            and (name not in ADDED_FIELDS or value != ADDED_FIELDS[name])
        }

    def __str__(self) -> str:
        """One line for people, sizes that they ask for first; no two keys read alike."""
        flags = {
            "not causal": not self.causal,
            "no cache update": not self.update_kv_cache,
            "soft cap": self.has_soft_cap,
            "sinks": self.has_sinks,
            "scales": self.has_scales,
            self.kv_layout: self.kv_layout != layout.HEAD_ALONG_SUBLANE,
            "log-sum-exp": self.return_lse,
            f"1 to {self.decode_query_size} new tokens": self.decode_query_size > 1,
        }
        dtypes = {"KV": self.kv_dtype, "queries": self.q_dtype, "output": self.out_dtype}
        same = len(set(dtypes.values())) == 1
        parts = [
            self._heads,
            self.kv_dtype if same else ", ".join(f"{n} {dtype}" for n, dtype in dtypes.items()),
            f"page {self.page_size}",
            f"{self.max_num_seqs} seqs",
            f"{self.max_num_tokens} tokens",
            f"context {self.max_context_tokens}",
            *([f"window {self.sliding_window_tokens}"] if self.sliding_window_tokens else []),
            *([f"chunk {self.attention_chunk_tokens}"] if self.attention_chunk_tokens else []),
            *(name for name, holds in flags.items() if holds),
        ]
        return f"{self.chip} {self.family}: {', '.join(parts)}"

    @property
    def _heads(self) -> str:
        if self.rope_dim:
            row = f"{self.kv_packing} tokens a row"
            return f"{self.num_q_heads} heads on latents {self.head_dim}+{self.rope_dim}, {row}"
        return f"{self.num_q_heads}/{self.num_kv_heads} heads of {self.head_dim}"


# Beyond this `distance` a row says less than the heuristic, which knows the problem. A guess until
# measured rows can say better.
NEAREST_LIMIT = 4.0

# How much a doubling of each size counts when two keys are compared. A guess; what rows so far
# apart lost is recorded (`loss.py`). The shape of the heads decides the kernel's inner loop, the
# page size its copies; the maxima only bound the batches.
_WEIGHTS = {
    "num_q_heads": 2.0,
    "num_kv_heads": 2.0,
    "head_dim": 4.0,
    "page_size": 1.0,
    "max_num_tokens": 0.25,
    "max_num_seqs": 0.25,
    "max_context_tokens": 0.5,
    "decode_query_size": 0.5,
}
# What a differing feature counts, on the same scale. Also a guess.
_FEATURES = {
    "out_dtype": 1.0,
    "causal": 2.0,
    "update_kv_cache": 1.0,
    "has_soft_cap": 0.5,
    "has_sinks": 0.25,
    "has_scales": 0.5,
    "return_lse": 0.25,
}
_WINDOW_WEIGHT = 1.0
_CHUNK_OR_WINDOW = 0.25  # that one has chunks and the other a window, or sees all
# A row must agree on these to be considered at all.
_FIXED = ("chip", "family", "q_dtype", "kv_dtype", "kv_layout", "rope_dim", "kv_packing")


# Family -> sizes that its best config does not depend on: rows that differ in them alone are of
# one study. A decode step has a token a sequence whatever the bucket; what else shares the launch
# is served by another family. `expected_loss.yaml` has the regret of taking one for the other.
FILLED: dict[str, tuple[str, ...]] = {
    "decode": ("max_num_tokens",),
    "mla-decode": ("max_num_tokens",),
}


def studied_key(key: TuningKey) -> TuningKey:
    """The same for all keys whose rows are of one study: `FILLED` fields are 0."""
    sizes: dict[str, Any] = dict.fromkeys(FILLED.get(key.family, ()), 0)
    return replace(key, **sizes)


def tuning_key(problem: Problem, chip: str, family: str) -> TuningKey:
    """The key under which rows for `problem` are written and looked up.

    Idempotent: a problem rebuilt with the bucketed sizes has the same key.
    """
    context = layout.next_power_of_2(problem.max_context_tokens)
    scales = (problem.q_scale, problem.k_scale, problem.v_scale)
    return TuningKey(
        chip=chip,
        family=family,
        q_dtype=problem.q_dtype,
        kv_dtype=problem.kv_dtype,
        out_dtype=problem.resolved_out_dtype,
        num_q_heads=problem.num_q_heads,
        num_kv_heads=problem.num_kv_heads,
        head_dim=_head_dim(problem),
        page_size=problem.page_size,
        max_num_tokens=layout.next_power_of_2(problem.max_num_tokens),
        max_num_seqs=layout.next_power_of_2(problem.max_num_seqs),
        max_context_tokens=context,
        sliding_window_tokens=_reach_bucket(problem.sliding_window, context),
        causal=problem.causal,
        update_kv_cache=problem.update_kv_cache,
        has_soft_cap=problem.soft_cap is not None,
        has_sinks=problem.has_sinks,
        has_scales=any(scale is not None for scale in scales),
        attention_chunk_tokens=_reach_bucket(problem.attention_chunk_size, context),
        kv_layout=problem.kv_layout,
        return_lse=problem.return_lse,
        decode_query_size=_decode_query_size(problem, family),
        rope_dim=problem.rope_dim or 0,
        kv_packing=problem.row_tokens if problem.is_latent else 0,
    )


def _decode_query_size(problem: Problem, family: str) -> int:
    serves_decode = slot_of(family) not in ("prefill", "mixed")
    return layout.next_power_of_2(problem.decode_query_size) if serves_decode else 1


def _head_dim(problem: Problem) -> int:
    if problem.is_seq_along_lane:
        return math.prod(problem.lane_page_shape(1)[1:])
    return problem.head_dim if problem.fuses_kv else problem.padded_head_dim


def _reach_bucket(tokens: int | None, context: int) -> int:
    """Bucket of a window or chunk; 0 for none, and for one over everything: the same work."""
    bucket = layout.next_power_of_2(tokens) if tokens else 0
    return bucket if bucket < context else 0


def representative(key: TuningKey) -> Problem:
    """A problem of this bucket, the largest: used to check that a row's configs fit."""
    return Problem(
        num_q_heads=key.num_q_heads,
        num_kv_heads=key.num_kv_heads,
        head_dim=key.head_dim,
        page_size=key.page_size,
        max_num_tokens=key.max_num_tokens,
        max_num_seqs=key.max_num_seqs,
        pages_per_seq=max(1, key.max_context_tokens // key.page_size),
        num_pages=max(1, key.max_context_tokens // key.page_size) * key.max_num_seqs,
        q_dtype=key.q_dtype,
        kv_dtype=key.kv_dtype,
        out_dtype=None if key.rope_dim else key.out_dtype,
        sliding_window=key.sliding_window_tokens or None,
        attention_chunk_size=key.attention_chunk_tokens or None,
        return_lse=key.return_lse,
        decode_query_size=key.decode_query_size,
        soft_cap=30.0 if key.has_soft_cap else None,
        causal=key.causal,
        update_kv_cache=key.update_kv_cache,
        has_sinks=key.has_sinks,
        k_scale=1.0 if key.has_scales else None,
        kv_layout=key.kv_layout,
        rope_dim=key.rope_dim or None,
        kv_packing=key.kv_packing or None,
    )


def beyond_key(problem: Problem, key: TuningKey) -> dict[str, Any]:
    """Fields in which a problem differs from the representative of its key.

    With them `problem_of` makes the very problem again: its softmax scale, its pages, the exact
    window, and whatever else the key rounds or leaves out.
    """
    usual = asdict(representative(key))
    return {name: value for name, value in asdict(problem).items() if value != usual[name]}


def problem_of(key: TuningKey, beyond: Mapping[str, Any]) -> Problem:
    """The problem that `beyond_key` described; of a row that a study filled, the one it timed.

    Raises:
      ValueError: It is no problem, or not one whose study makes rows of this key.
    """
    try:
        problem = replace(representative(key), **beyond)
        timed = tuning_key(problem, key.chip, key.family)
        agrees = studied_key(timed) == studied_key(key)
    except TypeError as error:
        raise ValueError(f"no problem: {error}") from error
    if not agrees:
        raise ValueError(f"{dict(beyond)} is a problem of another key")
    return problem


def timed_key(key: TuningKey, beyond: Mapping[str, Any] | None) -> TuningKey:
    """The key of the problem that a row's study timed: another one if the study filled the row.

    Args:
      key: The row's.
      beyond: What `beyond_key` kept; None where nothing is known.
    """
    filled: dict[str, Any] = {
        name: layout.next_power_of_2(beyond[name])
        for name in FILLED.get(key.family, ())
        if beyond and name in beyond
    }
    return replace(key, **filled)


def distance(a: TuningKey, b: TuningKey) -> float | None:
    """How far apart two keys are: weighted doublings plus differing features.

    Returns:
      0 for equal keys; None when the rows cannot stand in for each other at all.
    """
    if any(getattr(a, name) != getattr(b, name) for name in _FIXED):
        return None
    total = 0.0
    for name, weight in _WEIGHTS.items():
        total += weight * abs(math.log2(getattr(a, name)) - math.log2(getattr(b, name)))
    for name, weight in _FEATURES.items():
        total += weight * (getattr(a, name) != getattr(b, name))
    has_chunks = {bool(key.attention_chunk_tokens) for key in (a, b)}
    total += _CHUNK_OR_WINDOW * (len(has_chunks) - 1)
    return total + _WINDOW_WEIGHT * _reach_doublings(a, b)


def differences(a: TuningKey, b: TuningKey) -> dict[str, tuple[Any, Any]]:
    """Fields in which two keys differ: name -> (value in `a`, value in `b`)."""
    left, right = asdict(a), asdict(b)
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


def _reach_doublings(a: TuningKey, b: TuningKey) -> float:
    """No window is a window as long as the context; a chunk is one that is half as long on average.

    A sequence's chunk is anywhere between empty and full, a window is full.
    """
    halved = [key.attention_chunk_tokens / 2 for key in (a, b)]
    reaches = [key.sliding_window_tokens or half for key, half in zip((a, b), halved, strict=True)]
    if not any(reaches):
        return 0.0
    spans = [reach or key.max_context_tokens for key, reach in zip((a, b), reaches, strict=True)]
    return abs(math.log2(spans[0]) - math.log2(spans[1]))
