"""Scalars of the walk: which query block and KV block a step is, and which comes next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels import pages
from rpa_kernels.blockwise.chains import Chains
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.ints import cdiv, div
from rpa_kernels.pages import Meta
from rpa_kernels.problem import Problem
from rpa_kernels.window import last_hidden

Scalar = Any


class Cursor(NamedTuple):
    """A place in the walk: sequence, query block in it, KV block of that."""

    seq: Scalar
    q_block: Scalar
    kv_block: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Scalars of one query block and one KV block of it. Positions are tokens of context."""

    seq: Scalar
    token: Scalar  # row of its first query in the packed batch
    num_q: Scalar  # query tokens
    q_first: Scalar  # position of its first query
    q_end: Scalar  # position after its last query
    kv_start: Scalar  # position of the first key of the KV block
    kv_end: Scalar  # position after its last key
    num_kv: Scalar  # keys in it
    cached_end: Scalar  # position after the last key that is in the cache
    new_token: Scalar  # row in kv_new of the key at `cached_end`
    is_last_kv: Scalar  # whether the query block has no further KV block
    next_q: Cursor  # first step of the next query block


def block_at(cursor: Cursor, meta: Meta, problem: Problem, config: BlockwiseConfig) -> Block:
    """Reads the lengths of a step; any values past the last sequence."""
    seq = jnp.minimum(cursor.seq, meta.kv_lens.shape[0] - 1)
    q_start, q_stop, kv_len = meta.cu_q_lens[seq], meta.cu_q_lens[seq + 1], meta.kv_lens[seq]
    q_len = q_stop - q_start
    offset = cursor.q_block * config.bq_sz
    num_q = jnp.minimum(q_len - offset, config.bq_sz)
    q_first = kv_len - q_len + offset
    q_end = q_first + num_q
    visible_end = q_end if problem.causal else kv_len
    kv_start = pages.scalar_window_start(q_first, problem) + cursor.kv_block * config.bkv_sz
    kv_end = jnp.minimum(kv_start + config.bkv_sz, visible_end)
    more_q = offset + config.bq_sz < q_len
    one, zero = jnp.int32(1), jnp.int32(0)
    return Block(
        seq=seq,
        token=q_start + offset,
        num_q=num_q,
        q_first=q_first,
        q_end=q_end,
        kv_start=kv_start,
        kv_end=kv_end,
        num_kv=kv_end - kv_start,
        cached_end=kv_len - q_len if problem.update_kv_cache else kv_len,
        new_token=q_start,
        is_last_kv=kv_end >= visible_end,
        next_q=Cursor(
            cursor.seq + jnp.where(more_q, zero, one),
            jnp.where(more_q, cursor.q_block + 1, zero),
            zero,
        ),
    )


def after(cursor: Cursor, block: Block) -> Cursor:
    """The step after `cursor`, whose scalars are `block`."""
    last = block.is_last_kv
    return Cursor(
        jnp.where(last, block.next_q.seq, cursor.seq),
        jnp.where(last, block.next_q.q_block, cursor.q_block),
        jnp.where(last, 0, cursor.kv_block + 1),
    )


def on_path(block: Block, paths: Sequence[Chains], act: Callable[[Chains], None]) -> None:
    """Does `act` with the shortest split that holds a query block, chosen at run time.

    Args:
      block: The step.
      paths: The split of whole compute blocks, then ever shorter ones.
      act: What to do; there is code for it on every path.
    """
    longest, *shorter = paths
    if not shorter:
        act(longest)
        return
    is_long = block.num_q > shorter[0].tokens
    pl.when(is_long)(partial(act, longest))
    pl.when(jnp.logical_not(is_long))(partial(on_path, block, shorter, act))


def on_path_value(
    block: Block, paths: Sequence[Chains], value: Callable[[Chains], Scalar]
) -> Scalar:
    """A scalar of the split that `on_path` acts with, without a branch."""
    longest, *shorter = paths
    chosen = value(longest)
    for chains in shorter:
        chosen = jnp.where(block.num_q <= chains.tokens, value(chains), chosen)
    return chosen


class Tiles(NamedTuple):
    """KV compute blocks of one query compute block: [first, end) are visible in part or whole."""

    first: Scalar
    end: Scalar
    full_first: Scalar  # from here on every query sees every key, as far as the window goes
    full_end: Scalar  # and up to here, as far as causality and the context's end go


def tiles_of(block: Block, q_tile: Scalar, tokens: int, csz: int, problem: Problem) -> Tiles:
    """Which KV compute blocks a query compute block walks, and which need no mask.

    Args:
      block: The step.
      q_tile: Query compute block.
      tokens: Query tokens of one.
      csz: Tokens of a KV compute block.
      problem: Static shapes and features.
    """
    first = block.q_first + q_tile * tokens
    last = first + (tokens - 1)
    end, full_end = block.num_kv, block.num_kv
    if problem.causal:
        end = jnp.clip(last + 1 - block.kv_start, 0, end)
        full_end = jnp.clip(first + 1 - block.kv_start, 0, full_end)
    begin = full_begin = jnp.int32(0)
    if problem.reach_tokens is not None:
        begin, full_begin = (
            jnp.maximum(last_hidden(q_pos, problem) + 1 - block.kv_start, 0)
            for q_pos in (first, last)
        )
    # An empty range comes out as first >= end.
    return Tiles(
        first=div(begin, csz),
        end=cdiv(end, csz),
        full_first=cdiv(full_begin, csz),
        full_end=div(full_end, csz),
    )
