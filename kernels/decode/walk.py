"""The list of items that the decode kernel walks.

An *item* is one KV block of one sequence; the list has those of all the core's sequences in order.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from rpa_kernels import pages
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.pages import Meta
from rpa_kernels.problem import Problem

Scalar = Any


class Cursor(NamedTuple):
    """A place in the list of items: sequence and KV block within it."""

    seq: Scalar
    block: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Scalars of one item. One past the last sequence has no tokens and writes to spare rows."""

    seq: Scalar
    block: Scalar
    is_real: Scalar
    owner: Scalar  # whose pages `start` lies in: the sequence, or sequence 0 for no item
    start: Scalar  # position of the block's first token
    num_cached: Scalar  # tokens of the block that are in the cache
    num_tokens: Scalar  # the same and the new ones that fall in the block
    num_full: Scalar  # of these, those that every query sees by the causal mask
    first_query: Scalar  # position of the sequence's first query
    kv_len: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """Finds items by cursor; the core's own sequences are [first_seq, end_seq)."""

    meta: Meta
    first_seq: Scalar
    end_seq: Scalar
    problem: Problem
    config: DecodeConfig

    def item_at(self, cursor: Cursor) -> Item:
        """Reads the lengths of one item."""
        is_real = cursor.seq < self.end_seq
        owner = jnp.where(is_real, cursor.seq, 0)
        kv_len, is_single = self.meta.kv_lens[owner], self.problem.decode_query_size == 1
        q_len = 1 if is_single else self.meta.q_len(owner)
        first_query = kv_len - q_len
        base = pages.scalar_window_start(first_query, self.problem)
        start = base + cursor.block * self.config.bkv_sz
        num_tokens = jnp.where(is_real, jnp.minimum(kv_len - start, self.config.bkv_sz), 0)
        cached = kv_len - (q_len if self.problem.update_kv_cache else 0)
        num_cached, num_full = jnp.minimum(num_tokens, cached - start), num_tokens
        if not is_single:
            num_cached = jnp.maximum(num_cached, 0)
            if self.problem.causal:
                # In a tree no new token need be seen by all.
                end = first_query + int(not self.problem.has_tree_mask)
                num_full = jnp.minimum(num_tokens, end - start)
        return Item(
            seq=cursor.seq,
            block=cursor.block,
            is_real=is_real,
            owner=owner,
            start=start,
            num_cached=num_cached,
            num_tokens=num_tokens,
            num_full=num_full,
            first_query=first_query,
            kv_len=kv_len,
        )

    def after(self, item: Item) -> Cursor:
        """The cursor after an item; stays past the last sequence."""
        more = item.start + self.config.bkv_sz < item.kv_len
        same = jnp.logical_and(more, item.is_real)
        step = jnp.logical_and(jnp.logical_not(more), item.is_real).astype(jnp.int32)
        return Cursor(item.seq + step, jnp.where(same, item.block + 1, 0))

    def items_from(self, cursor: Cursor) -> tuple[list[Item], Cursor]:
        """The items of one step and the cursor of the next step."""
        items = []
        for _ in range(self.config.seqs_per_step):
            items.append(self.item_at(cursor))
            cursor = self.after(items[-1])
        return items, cursor
