"""Attends one query block to one unpacked KV block, as a software pipeline of chains.

A *chain* is the work of some query rows of one KV head on one KV compute block:

    score    q @ K.T   MXU       to a score buffer
    soften   softmax   VPU, EUP  to a probability buffer
    weigh    p @ V     MXU       into the accumulator

Done one after another, each stage would wait for the last: a matrix product returns about 200
cycles after it is issued. So the loop body works on three chains at once, and nothing in it waits
for anything else in it:

    weigh chain i - 1   |   soften chain i   |   score chain i + 1

Chains come in pairs, with a score and a probability buffer for the even and for the odd one:
the compiler can tell buffers apart, not rows of one buffer at indices it does not know. The code
is two pairs long (one with masks, one without), whatever the block sizes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels import online_softmax
from rpa_kernels.blockwise import walk
from rpa_kernels.blockwise.account import chain_parts
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.scratch import Scratch
from rpa_kernels.blockwise.walk import Block
from rpa_kernels.ints import cdiv, div, rem
from rpa_kernels.mask import mask_scores
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

Scalar = Any


class Pair(NamedTuple):
    """Two chains: query compute block, KV compute block, and which pair of that."""

    q_tile: Scalar
    kv_tile: Scalar
    index: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Refs and statics of the pipeline for one query block and KV block."""

    block: Block
    scratch: Scratch
    problem: Problem
    config: BlockwiseConfig
    target: Target

    @property
    def parts(self) -> int:
        """Chains that the query rows of one KV head are split into."""
        return chain_parts(self.problem, self.config)

    @property
    def rows(self) -> int:
        """Query rows of a chain."""
        return self.scratch.m.shape[2] // self.parts

    @property
    def num_pairs(self) -> int:
        """Pairs of chains in one query compute block and KV compute block."""
        return self.problem.num_kv_heads * self.parts // 2

    def run(self) -> None:
        """Runs every chain that sees a key; fills and empties the pipeline around them."""
        s, (begin, end) = self.scratch, self.q_tiles()

        @pl.when(begin < end)
        def _() -> None:
            first = Pair(begin, self.tiles(begin).first, jnp.int32(0))
            self.score(first, 0)
            # The first pair finds a chain before it that adds nothing.
            s.p[1][...] = jnp.zeros_like(s.p[1])
            s.alpha[1][...] = jnp.ones_like(s.alpha[1])
            _, last = jax.lax.while_loop(
                lambda carry: carry[0].q_tile < end, lambda c: self.step(*c, end), (first, first)
            )
            self.weigh(last, 1)

    def q_tiles(self) -> tuple[Scalar, Scalar]:
        """Query compute blocks that see a key of the KV block."""
        block, size = self.block, self.config.bq_csz
        begin, end = jnp.int32(0), cdiv(block.num_q, size)
        if self.problem.causal:
            begin = div(jnp.maximum(block.kv_start - block.q_first, 0), size)
        if self.problem.sliding_window is not None:
            oldest = block.kv_end - 1 + self.problem.sliding_window - block.q_first
            end = jnp.minimum(end, cdiv(jnp.maximum(oldest, 0), size))
        return begin, end

    def tiles(self, q_tile: Scalar) -> walk.Tiles:
        """KV compute blocks that a query compute block walks."""
        return walk.tiles_of(self.block, q_tile, self.problem, self.config)

    def step(self, pair: Pair, before: Pair, end: Scalar) -> tuple[Pair, Pair]:
        """One pass of the loop; returns the next pair and this one."""
        tiles = self.tiles(pair.q_tile)
        following = self.after(pair, tiles)
        is_last = following.q_tile >= end
        # Past the last pair there is nothing to score; scoring it again does no harm.
        ahead = Pair(*(jnp.where(is_last, a, b) for a, b in zip(pair, following, strict=True)))
        is_full = jnp.logical_and(pair.kv_tile >= tiles.full_first, pair.kv_tile < tiles.full_end)

        @pl.when(is_full)
        def _() -> None:
            self.attend(before, pair, ahead, masked=False)

        @pl.when(jnp.logical_not(is_full))
        def _() -> None:
            self.attend(before, pair, ahead, masked=True)

        return following, pair

    def after(self, pair: Pair, tiles: walk.Tiles) -> Pair:
        """The pair after `pair`, whose query compute block walks `tiles`."""
        more_pairs = pair.index + 1 < self.num_pairs
        more_tiles = pair.kv_tile + 1 < tiles.end
        next_q = pair.q_tile + 1
        next_tile = jnp.where(more_tiles, pair.kv_tile + 1, self.tiles(next_q).first)
        return Pair(
            jnp.where(jnp.logical_or(more_pairs, more_tiles), pair.q_tile, next_q),
            jnp.where(more_pairs, pair.kv_tile, next_tile),
            jnp.where(more_pairs, pair.index + 1, 0),
        )

    def attend(self, before: Pair, pair: Pair, ahead: Pair, *, masked: bool) -> None:
        """The loop body: two beats of weigh, score, soften.

        The scheduler keeps MXU work in this order; products first leave the vector work of the
        same beat to hide behind (3 % over softening first, on v6e).
        """
        self.weigh(before, 1)
        self.score(pair, 1)
        self.soften(pair, 0, masked=masked)
        self.score(ahead, 0)
        self.weigh(pair, 0)
        self.soften(pair, 1, masked=masked)

    def head_and_rows(self, pair: Pair, odd: int) -> tuple[Scalar, Any]:
        """KV head of a chain and its rows of the query compute block."""
        chain = 2 * pair.index + odd
        if self.parts == 1:
            return chain, pl.ds(0, self.rows)
        start = rem(chain, self.parts) * self.rows
        return div(chain, self.parts), pl.ds(pl.multiple_of(start, self.rows), self.rows)

    def keys(self, pair: Pair) -> Any:
        """Rows of the KV block that a pair looks at."""
        start = pair.kv_tile * self.config.bkv_csz
        return pl.ds(pl.multiple_of(start, self.config.bkv_csz), self.config.bkv_csz)

    def score(self, pair: Pair, odd: int) -> None:
        """Stage one of a chain."""
        s, (head, rows) = self.scratch, self.head_and_rows(pair, odd)
        q = s.scaled_q[head, pair.q_tile, rows]
        s.s[odd][...] = online_softmax.scores(q, s.k[head, self.keys(pair)], self.problem)

    def soften(self, pair: Pair, odd: int, *, masked: bool) -> None:
        """Stage two of a chain."""
        s, (head, rows) = self.scratch, self.head_and_rows(pair, odd)
        at = (head, pair.q_tile, rows)
        scores = s.s[odd][...]
        if masked:
            k_start = self.block.kv_start + pair.kv_tile * self.config.bkv_csz
            q_pos = self.q_positions(pair.q_tile, rows.start)
            scores = mask_scores(scores, q_pos, k_start, self.block.kv_end, self.problem)
        m_old = s.m[at]
        m = jnp.maximum(m_old, jnp.max(scores, axis=1, keepdims=True))
        p = online_softmax.exponentials(
            scores, online_softmax.spread(m, scores.shape[1]), self.target, s.k.dtype
        )
        alpha = jnp.exp2(m_old - m)
        s.m[at] = m
        s.alpha[odd][...] = alpha
        if s.sums is not None:
            total = jnp.sum(p.astype(jnp.float32), axis=1, keepdims=True)
            s.sums[at] = alpha * s.sums[at] + total
        s.p[odd][...] = p.astype(s.p[odd].dtype)

    def weigh(self, pair: Pair, odd: int) -> None:
        """Stage three of a chain."""
        s, (head, rows) = self.scratch, self.head_and_rows(pair, odd)
        at = (head, pair.q_tile, rows)
        values = (s.k if s.v is None else s.v)[head, self.keys(pair)]
        pv = online_softmax.weigh(s.p[odd][...], values)
        s.acc[at] = online_softmax.spread(s.alpha[odd][...], pv.shape[1]) * s.acc[at] + pv

    def q_positions(self, q_tile: Scalar, first_row: Scalar) -> jax.Array:
        """Position of the query of each row of a chain: int32[rows, 1]."""
        pack = self.problem.q_shape[3]
        index = first_row + jax.lax.broadcasted_iota(jnp.int32, (self.rows, 1), 0)
        token = (index >> (pack.bit_length() - 1)) & (self.config.bq_csz - 1)
        return self.block.q_first + q_tile * self.config.bq_csz + token
