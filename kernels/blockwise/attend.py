"""Attends one query block to one unpacked KV block, as a software pipeline of chains.

A *chain* is the work of some query rows of one KV head on one KV compute block:

    qk        q @ K.T   MXU       to the score buffer
    softmax   softmax   VPU, EUP  to the probability buffer
    pv        p @ V     MXU       into the accumulator

Done one after another, each stage would wait for the last: a matrix product returns about 200
cycles after it is issued. So a pass of the loop works on a *group* of chains, staggered:

    chain c - 1   pv         MXU    or chain c, after its softmax; see `delays_pv`
    chain c + 1   qk         MXU    the last chain's turn scores the first one of the next pass
    chain c       softmax    VPU

With a delayed pv, no stage waits for another one of its turn. The compiler sees all turns of a pass
as one block of instructions and fills the units; at the end of a pass they drain, some 250 cycles,
so passes are long. Buffers have slots for a few chains, and a slot is read before it is written
again. Indices of a group are one dynamic start and static steps, which lets the compiler tell its
chains apart. The code is two passes long (one with masks, one without), and one for each split for
few queries (`chains.py`), whatever the block sizes.

Where some queries do not see some keys (the diagonal, the ends of a window and of the context) a
pass has a mask, which all heads share, and where that gains half the keys: an *edge*. Of a KV
compute block at the diagonal that leaves out the half that nobody sees. What one pass does for
another one (its first qk, its last pv) is done for whole KV compute blocks: an edge takes
its half of the scores, and leaves zeros in the other half of the probabilities.

The softmax of few rows takes less time than a product needs to return. Their splits have larger
KV compute blocks, whose scores lie in the buffers one `bkv_csz` of keys below the other, and
`lag` more chains between the stages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels import lane_ops, online_softmax
from rpa_kernels.blockwise import walk
from rpa_kernels.blockwise.chains import Chains
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.scratch import Scratch
from rpa_kernels.blockwise.walk import Block
from rpa_kernels.ints import cdiv, div, rem
from rpa_kernels.mask import mask_scores
from rpa_kernels.problem import Problem
from rpa_kernels.stagger import pass_order
from rpa_kernels.target import Target
from rpa_kernels.window import end_of_sight

Ref = Any
Scalar = Any


class Group(NamedTuple):
    """Chains of one pass: query compute block, edge of the KV block, which group of them."""

    q_tile: Scalar
    kv_edge: Scalar
    index: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Refs and statics of the pipeline for one query block and KV block."""

    block: Block
    chains: Chains
    scratch: Scratch
    problem: Problem
    config: BlockwiseConfig
    target: Target

    def run(self) -> None:
        """Runs every chain that sees a key; fills and empties the pipeline around them."""
        begin, end = self.q_tiles()

        @pl.when(begin < end)
        def _() -> None:
            first = Group(begin, self.tiles(begin).first, jnp.int32(0))
            for chain in range(self.chains.lag):
                self.qk(first, chain, is_edge=False)
            if self.delays_pv:
                self.clear_last(first)
            before, _ = jax.lax.while_loop(
                lambda groups: groups[1].q_tile < end,
                lambda groups: (groups[1], self.step(*groups, end)),
                (first, first),
            )
            if self.delays_pv:
                self.pv(before, self.chains.width - 1, is_edge=False)

    @property
    def delays_pv(self) -> bool:
        """Whether pv comes one turn later, and that of a pass's last chain in the next pass.

        With result buffers the compiler gives each product a unit of its own, and that of p @ V
        would idle at the head of a pass until the first chain's softmax. Units whose results
        come in order share both products, and have the scores to begin with.
        """
        return self.target.has_result_buffers and not self.chains.is_short

    def clear_last(self, group: Group) -> None:
        """Makes the last chain's slot one that adds nothing in the first pass's pv."""
        s, last = self.scratch, self.chains.width - 1
        self.store(s.p, last, jnp.zeros((self.chains.rows, self.chains.keys), s.p.dtype))
        own = self.locate(group, last)[2]
        s.alpha[own] = jnp.ones((own.size, s.alpha.shape[1]), s.alpha.dtype)

    def q_tiles(self) -> tuple[Scalar, Scalar]:
        """Query compute blocks that see a key of the KV block."""
        block, size = self.block, self.chains.tokens
        begin: Scalar = jnp.int32(0)
        end: Scalar = cdiv(block.num_q, size)
        if self.problem.causal:
            begin = div(jnp.maximum(block.kv_start - block.q_first, 0), size)
        too_late = end_of_sight(block.kv_end - 1, self.problem)
        if too_late is not None:
            end = jnp.minimum(end, cdiv(jnp.maximum(too_late - block.q_first, 0), size))
        return begin, end

    def tiles(self, q_tile: Scalar) -> walk.Tiles:
        """Edges of KV compute blocks that a query compute block walks."""
        c = self.chains
        return walk.tiles_of(self.block, q_tile, c.tokens, c.edge_keys, self.problem)

    def step(self, before: Group, group: Group, end: Scalar) -> Group:
        """One pass, after that of `before`; returns the next group."""
        tiles, num_edges = self.tiles(group.q_tile), self.chains.num_edges
        start, stop = group.kv_edge, group.kv_edge + num_edges
        is_full = (start >= tiles.full_first) & (stop <= tiles.full_end)
        is_full &= rem(start, num_edges) == 0
        following = self.after(group, jnp.where(is_full, num_edges, 1), tiles)
        is_last = following.q_tile >= end
        # Past the last group there is nothing to score; scoring this one again does no harm.
        ahead = Group(*(jnp.where(is_last, a, b) for a, b in zip(group, following, strict=True)))
        if self.chains.is_short:
            # A mask on few rows costs nothing that shows; a second body is a quarter of all code.
            self.attend(before, group, ahead, is_edge=True)
            return following

        @pl.when(is_full)
        def _() -> None:
            self.attend(before, group, ahead, is_edge=False)

        @pl.when(jnp.logical_not(is_full))
        def _() -> None:
            self.attend(before, group, ahead, is_edge=True)

        return following

    def after(self, group: Group, num_edges: Scalar, tiles: walk.Tiles) -> Group:
        """The group after `group`, which takes `num_edges` of the edges that its queries walk."""
        more_groups = group.index + 1 < self.chains.num_groups
        kv_edge = group.kv_edge + num_edges
        more_tiles = kv_edge < tiles.end
        next_q = group.q_tile + 1
        next_edge = jnp.where(more_tiles, kv_edge, self.tiles(next_q).first)
        return Group(
            jnp.where(jnp.logical_or(more_groups, more_tiles), group.q_tile, next_q),
            jnp.where(more_groups, group.kv_edge, next_edge),
            jnp.where(more_groups, group.index + 1, 0),
        )

    def attend(self, before: Group, group: Group, ahead: Group, *, is_edge: bool) -> None:
        """One pass over the chains of a group; the first were scored by the pass before."""
        c = self.chains
        order = pass_order(
            c.width, lag=c.lag, num_slots=c.num_slots, num_masks=c.num_masks * is_edge,
            delays_pv=self.delays_pv,
        )  # fmt: skip
        stages: dict[str, Callable[[Group, int], None]] = {
            "mask": self.keep_mask_cap,
            "qk": partial(self.qk, is_edge=is_edge),
            "softmax": partial(self.softmax, is_edge=is_edge),
            "pv": partial(self.pv, is_edge=is_edge),
        }
        # What is done for another pass is done for whole KV compute blocks.
        for stage, chain in order:
            if chain < 0:
                self.pv(before, chain + c.width, is_edge=False)
            elif chain >= c.width:
                self.qk(ahead, chain - c.width, is_edge=False)
            else:
                stages[stage](group, chain)

    def locate(self, group: Group, chain: int) -> tuple[Scalar, Any, Any]:
        """KV head of a chain, its rows of the query compute block, and those of its slot."""
        c = self.chains
        if c.width >= c.parts:
            head = group.index * (c.width // c.parts) + chain // c.parts
            first = chain % c.parts * c.rows
        else:
            turns = c.parts // c.width
            head = div(group.index, turns)
            first = rem(group.index, turns) * (c.width * c.rows) + chain * c.rows
        return head, first, pl.ds(chain % c.num_slots * c.rows, c.rows)

    def rows(self, group: Group, first: Scalar) -> Any:
        """Rows of the query block that start at row `first` of a query compute block."""
        c = self.chains
        start = group.q_tile * (c.rows * c.parts) + first
        return pl.ds(pl.multiple_of(start, c.rows), c.rows)

    def keys(self, group: Group, *, is_edge: bool) -> Any:
        """Rows of the KV block of a group's edge, or those of its KV compute block."""
        c = self.chains
        if is_edge:
            return pl.ds(pl.multiple_of(group.kv_edge * c.edge_keys, c.edge_keys), c.edge_keys)
        block: Scalar = div(group.kv_edge, c.num_edges)
        return pl.ds(pl.multiple_of(block * c.keys, c.keys), c.keys)

    def folds(self, ref: Ref, chain: int, keys: int) -> list[Any]:
        """Where a buffer holds the first `keys` of a chain's keys, each `bkv_csz` of them apart."""
        c, csz = self.chains, self.config.bkv_csz
        num_slots = c.num_masks if ref is self.scratch.mask_cap else c.num_slots
        first, step = chain % num_slots * c.rows, c.rows * num_slots
        lanes = pl.ds(0, min(keys, csz))
        return [(pl.ds(first + step * fold, c.rows), lanes) for fold in range(-(-keys // csz))]

    def load(self, ref: Ref, chain: int, keys: int) -> jax.Array:
        """Scores or probabilities of a chain, or what its scores are at most: [rows, keys]."""
        return jnp.concatenate([ref[part] for part in self.folds(ref, chain, keys)], axis=1)

    def store(self, ref: Ref, chain: int, value: jax.Array) -> None:
        """Stores what `load` loads."""
        csz = self.config.bkv_csz
        for i, part in enumerate(self.folds(ref, chain, value.shape[1])):
            ref[part] = value[:, i * csz : (i + 1) * csz]

    def qk(self, group: Group, chain: int, *, is_edge: bool) -> None:
        """Stage one of a chain."""
        s, (head, first, own) = self.scratch, self.locate(group, chain)
        q = s.scaled_q[head, self.rows(group, first)]
        k = s.k[head, self.keys(group, is_edge=is_edge)]
        scores = online_softmax.qk(q, k, self.problem)
        self.store(s.s, chain, scores)
        if self.delays_pv and not is_edge:
            assert s.lane_max is not None
            # Here they pass through registers anyhow; `softmax` then loads them once, not twice.
            s.lane_max[own] = lane_ops.max_by_lane(scores)

    def softmax(self, group: Group, chain: int, *, is_edge: bool) -> None:
        """Stage two of a chain."""
        s, (head, first, own) = self.scratch, self.locate(group, chain)
        at = (head, self.rows(group, first))
        keys = self.chains.keys
        scores = self.edge_scores(group, chain) if is_edge else self.load(s.s, chain, keys)
        m_old, most = s.m[at], None
        if self.delays_pv and not is_edge:
            assert s.lane_max is not None
            most = s.lane_max[own]
        # Sums need float32: to widen packed exponentials takes longer than to compute them wide.
        dtype = s.p.dtype if s.row_sum is None else jnp.dtype(jnp.float32)
        p, m, alpha = online_softmax.softmax_step(scores, m_old, self.target, dtype, most=most)
        s.m[at] = m
        s.alpha[own] = alpha
        if s.row_sum is not None:
            s.row_sum[at] = alpha * s.row_sum[at] + lane_ops.sum_by_lane(p)
        p = p.astype(s.p.dtype)
        if is_edge and self.delays_pv and chain == self.chains.width - 1:
            p = self.whole(group, p)
        self.store(s.p, chain, p)

    def edge_scores(self, group: Group, chain: int) -> jax.Array:
        """Masked scores of a chain: [rows, edge_keys]."""
        c, s = self.chains, self.scratch
        if chain < c.lag:  # scored in the pass before, with the whole KV compute block
            whole = self.load(s.s, chain, c.keys)
            scores, *others = jnp.split(whole, c.num_edges, axis=1)
            for i, other in enumerate(others, 1):
                scores = jnp.where(self.is_at(group, i), other, scores)
        else:
            scores = self.load(s.s, chain, c.edge_keys)
        if c.num_masks:
            return jnp.minimum(scores, self.load(s.mask_cap, chain, c.edge_keys))
        return self.mask(scores, group, self.locate(group, chain)[1])

    def whole(self, group: Group, p: jax.Array) -> jax.Array:
        """Probabilities of an edge, [rows, edge_keys], as those of the KV compute block."""
        if self.chains.num_edges == 1:
            return p
        edges = range(self.chains.num_edges)
        parts = [jnp.where(self.is_at(group, i), p, jnp.zeros_like(p)) for i in edges]
        return jnp.concatenate(parts, axis=1)

    def is_at(self, group: Group, index: int) -> Scalar:
        """Whether a group looks at edge `index` of its KV compute block."""
        return rem(group.kv_edge, self.chains.num_edges) == index

    def keep_mask_cap(self, group: Group, chain: int) -> None:
        """Keeps what the scores of a chain are at most, for it and the same part of other heads.

        To load it is one `vmin` for each register of scores, to compute it two or more.
        """
        c = self.chains
        anything = jnp.full((c.rows, c.edge_keys), jnp.inf, jnp.float32)
        cap = self.mask(anything, group, self.locate(group, chain)[1])
        self.store(self.scratch.mask_cap, chain, cap)

    def mask(self, scores: jax.Array, group: Group, first: Scalar) -> jax.Array:
        """Masks scores of the rows from `first` on: [rows, edge_keys]."""
        k_start = self.block.kv_start + group.kv_edge * self.chains.edge_keys
        q_pos = self.q_positions(group.q_tile, first)
        return mask_scores(scores, q_pos, k_start, self.block.kv_end, self.problem)

    def pv(self, group: Group, chain: int, *, is_edge: bool) -> None:
        """Stage three of a chain."""
        c, s, (head, first, own) = self.chains, self.scratch, self.locate(group, chain)
        at = (head, self.rows(group, first))
        values = self.values(head, self.keys(group, is_edge=is_edge))
        p = self.load(s.p, chain, c.edge_keys if is_edge else c.keys)
        pv = online_softmax.pv(p, values)
        s.acc[at] = lane_ops.widen(s.alpha[own], pv.shape[1]) * s.acc[at] + pv

    def values(self, head: Scalar, keys: Any) -> jax.Array:
        """Rows of V: in K's place where that holds both, its first lanes with latents."""
        s = self.scratch
        if s.v is None and self.problem.is_latent:
            rows: jax.Array = s.k[head, keys, pl.ds(0, self.problem.padded_head_dim)]
        else:
            rows = (s.k if s.v is None else s.v)[head, keys]
        return rows

    def q_positions(self, q_tile: Scalar, first: Scalar) -> jax.Array:
        """Position of the query of each row of a chain: int32[rows, 1].

        Rows are in the order granule, word, token, part of the word.
        """
        _, words, pack, _ = self.problem.q_shape[1:]
        size = self.chains.granule
        row = first + jax.lax.broadcasted_iota(jnp.int32, (self.chains.rows, 1), 0)
        token = (row >> (pack.bit_length() - 1)) & (size - 1)
        granule = div(row, size * pack * words)
        q_tile_first = self.block.q_first + q_tile * self.chains.tokens
        position: jax.Array = q_tile_first + granule * size + token
        return position
