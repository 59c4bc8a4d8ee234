"""The maths of one decode step: each item's own online softmax, then the join of the items.

A chain is one item and one head group. Its softmax state is independent of all others', so that
the products of some chains run while others wait for theirs.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels import lane_ops, lane_pages, latent_rows, layout, online_softmax, operands, packed
from rpa_kernels.decode import heads
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.heads import HeadGroup
from rpa_kernels.decode.scratch import Scratch
from rpa_kernels.decode.walk import Item
from rpa_kernels.ints import div, rem
from rpa_kernels.mask import mask_scores
from rpa_kernels.online_softmax import MASKED
from rpa_kernels.pages import Meta
from rpa_kernels.problem import Problem
from rpa_kernels.stagger import staggered
from rpa_kernels.target import Target
from rpa_kernels.window import last_hidden, newest_sees_from

Scalar = Any
Row = tuple[Scalar, Scalar]  # buffer and row of a sequence's queries and output

# Chains between the stages of one chain: enough to cover the MXU's result latency, few enough
# that their scores stay in registers.
CHAIN_LAG = 4
# Scores from which a compute block of an item, all heads of latents, is two chains, one behind the
# other; and the lag of such chains, whose products take longer than their latency (v7x, 128 heads,
# float8: 736 cycles for 1024 keys as lag 2, 866 as 1, 737 as 3, 796 in one chain; simulated).
LONG_CHAIN = 128 * 1024
LONG_LAG = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Attend:
    """Scratch and statics; methods are the phases of one step's maths."""

    scratch: Scratch
    meta: Meta
    problem: Problem
    config: DecodeConfig
    target: Target
    on_chip: bool

    @property
    def groups(self) -> tuple[HeadGroup, ...]:
        """Heads that are attended to together."""
        return heads.head_groups(self.problem)

    @property
    def tokens(self) -> int:
        """Query tokens that are computed for a sequence."""
        return heads.query_tokens(self.problem)

    @property
    def keys(self) -> int:
        """Keys of a chain: half a compute block of latents, where that is long."""
        return self.config.bkv_csz // (2 if self.is_long else 1)

    @property
    def is_long(self) -> bool:
        """Whether a compute block of an item is two chains.

        Not where results are popped in order: that gains nothing (v6e: 1,358 cycles for 1,326).
        """
        scores = heads.group_rows(self.problem) * self.config.bkv_csz
        is_any = self.problem.is_latent and self.target.has_result_buffers
        return is_any and scores >= LONG_CHAIN

    def begin(self, rows: list[Row]) -> None:
        """Loads the items' queries and clears their softmax state."""
        s = self.scratch
        for g, row in enumerate(rows):
            for i, group in enumerate(self.groups):
                q = packed.load_token_q(
                    s.q, row, head=group.first, count=group.count, tokens=self.tokens,
                    on_chip=self.on_chip,
                )  # fmt: skip
                if s.q_rope is not None:
                    rope = packed.load_token_q(
                        s.q_rope, row, head=0, tokens=self.tokens, on_chip=self.on_chip
                    )
                    q = jnp.concatenate([q, rope], axis=1)
                q = online_softmax.scale_q(q, self.problem, s.scaled_q.dtype)
                s.scaled_q[g, i, pl.ds(0, q.shape[0])] = q
        s.item_m[...] = jnp.full_like(s.item_m, MASKED)
        s.item_row_sum[...] = jnp.zeros_like(s.item_row_sum)
        s.item_acc[...] = jnp.zeros_like(s.item_acc)

    def tile(self, slot: Scalar, items: list[Item], first: Scalar, *, masked: bool) -> None:
        """Attends every item to compute block [first, first + bkv_csz) of its KV block."""
        s, problem, groups = self.scratch, self.problem, self.groups
        mxu_dtype = jnp.dtype(operands.matmul_dtype(problem))
        keys = self.keys

        def place(chain: int) -> tuple[int, int, Scalar]:
            """Its item, its head group, and the first of its keys."""
            part, chain = divmod(chain, len(items) * len(groups))
            return *divmod(chain, len(groups)), first + part * keys

        def state(chain: int) -> tuple[Any, ...]:
            g, i, _ = place(chain)
            rows = pl.ds(0, groups[i].rows(problem))
            return tuple(ref.at[g, i, rows] for ref in (s.item_m, s.item_row_sum, s.item_acc))

        def load(chain: int, *, value: bool) -> jax.Array:
            g, i, start = place(chain)
            left = items[g].num_tokens - start if masked else None
            return self.load(slot, groups[i], g * self.config.bkv_sz + start, left, value=value)

        def qk(chain: int, _: None) -> jax.Array:
            g, i, _ = place(chain)
            q = s.scaled_q[g, i, pl.ds(0, groups[i].rows(problem))]
            return online_softmax.qk(
                q, load(chain, value=False), problem, along_lanes=problem.is_seq_along_lane
            )

        def softmax(chain: int, scores: jax.Array) -> tuple[jax.Array, ...]:
            g, i, start = place(chain)
            item = items[g] if masked else None
            scores = self.mask(scores, groups[i], item, start)
            m_ref, row_sum_ref, _ = state(chain)
            p, m, alpha = online_softmax.softmax_step(scores, m_ref[...], self.target, mxu_dtype)
            m_ref[...] = m
            row_sum_ref[...] = alpha * row_sum_ref[...] + jnp.sum(
                p.astype(jnp.float32), axis=1, keepdims=True
            )
            return p, alpha

        def pv(chain: int, carried: tuple[jax.Array, ...]) -> None:
            p, alpha = carried
            *_, acc = state(chain)
            pv = online_softmax.pv(
                p.astype(mxu_dtype),
                load(chain, value=True),
                along_lanes=problem.is_seq_along_lane,
            )
            acc[...] = lane_ops.widen(alpha, acc.shape[1]) * acc[...] + pv

        num_chains = len(items) * len(groups) * (self.config.bkv_csz // keys)
        staggered(num_chains, (qk, softmax, pv), LONG_LAG if self.is_long else CHAIN_LAG)

    def load(
        self, slot: Scalar, group: HeadGroup, start: Scalar, num_valid: Scalar, *, value: bool
    ) -> jax.Array:
        """Loads K or V of a group for one compute block, ready to be multiplied.

        Args:
          slot: KV buffer.
          group: Heads.
          start: First token in the buffer.
          num_valid: Tokens that were fetched, or None if all were.
          value: Whether V is wanted, in which stale bits are cleared: a weight of zero would not
            save the sum from a NaN in them. In K the mask of the scores does.

        Returns:
          [keys, lanes], or [lanes, keys] where tokens lie along lanes.
        """
        problem, count = self.problem, self.keys
        where: dict[str, Any] = {
            "start": start,
            "count": count,
            "num_valid": num_valid if value else None,
            "on_chip": self.on_chip,
        }
        if problem.is_latent:
            lanes = problem.padded_head_dim if value else problem.k_lanes
            kv = latent_rows.load(self.scratch.kv, (slot,), lanes=lanes, **where)
        elif problem.is_seq_along_lane:
            kv = lane_pages.load(
                self.scratch.kv, (slot,), part=2 * group.first + int(value),
                words=problem.kv_words, **where,
            )  # fmt: skip
        elif heads.keeps_words(problem):
            kv = packed.load_rows(
                self.scratch.kv, (slot,), word=group.word, num_rows=group.count, **where
            )
        elif group.count > 1:
            kv = packed.load_pair(self.scratch.kv, (slot,), word=group.word, value=value, **where)
        else:
            kv = packed.load_kv(
                self.scratch.kv, (slot,), head=group.first, fused=problem.fuses_kv,
                dtype=problem.kv_dtype, **where,
            )[value]  # fmt: skip
        return kv.astype(operands.kv_dtype(problem, self.target))

    def mask(
        self, scores: jax.Array, group: HeadGroup, item: Item | None, first: Scalar
    ) -> jax.Array:
        """Masks scores: of keys that the query must not see, and of other heads.

        Args:
          scores: float32[rows, columns]; a column is a key of one of the group's heads.
          group: Heads.
          item: Says which keys the query sees; None if all.
          first: First token of the compute block in the item's KV block.
        """
        problem = self.problem
        if heads.columns_of(group, problem) == 1:
            if item is None:
                return scores
            start = item.start + first
            if problem.has_tree_mask:
                column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
                return jnp.where(self.seen_in_tree(start + column, item), scores, MASKED)
            return mask_scores(scores, self.positions(scores, item), start, item.kv_len, problem)
        row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        if heads.keeps_words(problem):
            pack = layout.packing(problem.kv_dtype)
            key, own = column, column & (pack - 1)
        else:
            pack, (key, own) = 1, packed.pair_columns(column, self.keys)
        per_head = heads.rows_per_head(problem)
        part = jnp.zeros_like(column)
        for head in range(1, group.count):
            part = jnp.where(row >= head * per_head, head, part)
        seen = own == part
        if item is not None:
            seen &= self.seen_columns(key, item, item.start + first, pack)
        return jnp.where(seen, scores, MASKED)

    def seen_columns(self, key: jax.Array, item: Item, start: Scalar, pack: int) -> jax.Array:
        """Which columns the query of each row sees, whatever their head.

        Args:
          key: int32[rows, columns], `pack` times the number of the column's key, up to a key more.
          item: Says which keys the queries see.
          start: Position of the first key.
          pack: What it was multiplied with: rows that lie side by side in a word.
        """
        problem = self.problem
        if problem.has_tree_mask:
            return self.seen_in_tree(start + div(key, pack), item)
        if self.tokens == 1:
            seen: jax.Array = key < (item.kv_len - start) * pack
            oldest = newest_sees_from(item.kv_len, problem)
        else:
            position = self.positions(key, item)
            newest = item.kv_len - 1
            if problem.causal:
                newest = jnp.minimum(newest, position)
            seen = key < (newest + 1 - start) * pack
            hidden = last_hidden(position, problem)
            oldest = None if hidden is None else hidden + 1
        if oldest is not None:
            seen &= key >= (oldest - start) * pack
        return seen

    def positions(self, scores: jax.Array, item: Item) -> Scalar:
        """Position of each row's query, int32[rows, 1]; a scalar where that is one for all."""
        if self.tokens == 1:
            return item.kv_len - 1
        return item.first_query + self.token_of_row(scores.shape[0])

    def token_of_row(self, num_rows: int) -> jax.Array:
        """Which of its sequence's new tokens each row is of, int32[rows, 1]."""
        row: Any = jax.lax.broadcasted_iota(jnp.int32, (num_rows, 1), 0)
        token: jax.Array = rem(div(row, heads.rows_per_token(self.problem)), self.tokens)
        return token

    def seen_in_tree(self, position: jax.Array, item: Item) -> jax.Array:
        """Which keys each row's token sees: cached ones, itself, and new ones by the tree mask.

        Args:
          position: int32[rows, keys], that of each key.
          item: Whose tokens.
        """
        token, tree_mask = self.token_of_row(position.shape[0]), self.meta.tree_mask
        assert tree_mask is not None
        first, last = self.meta.cu_q_lens[item.owner], self.problem.max_num_tokens - 1
        bits = jnp.zeros_like(token)
        for t in range(self.problem.decode_query_size):
            own = tree_mask[jnp.minimum(first + t, last)] | (1 << t)
            bits = jnp.where(token == t, own, bits)
        new = position - item.first_query
        in_tree = ((bits >> jnp.clip(new, 0, self.tokens - 1)) & 1) == 1
        seen: jax.Array = ((new < 0) | in_tree) & (position < item.kv_len)
        return seen

    def join(self, items: list[Item], rows: list[Row]) -> None:
        """Joins the items, in order, into the running sequence, and stores outputs.

        The output row is stored after every item of its sequence; the last one stays.
        """
        s, problem = self.scratch, self.problem
        v_scale = problem.v_scale or 1.0
        lse: list[Any] = [[0.0] * self.tokens for _ in items]
        for i, group in enumerate(self.groups):
            used = pl.ds(0, group.rows(problem))
            m, row_sum, acc = s.m[i, used], s.row_sum[i, used], s.acc[i, used]
            for g, (item, row) in enumerate(zip(items, rows, strict=True)):
                m, row_sum, acc = self.reset(group, item.block == 0, m, row_sum, acc)
                m, alpha, beta = online_softmax.merge_factors(m, s.item_m[g, i, used])
                row_sum = alpha * row_sum + beta * s.item_row_sum[g, i, used]
                width = acc.shape[1]
                acc = lane_ops.widen(alpha, width) * acc
                acc += lane_ops.widen(beta, width) * s.item_acc[g, i, used]
                factor = v_scale / row_sum
                if problem.return_lse:
                    factor = jnp.where(online_softmax.is_empty(m), 0.0, factor)
                    self.add_lse(lse[g], group, online_softmax.log_sum_exp(m, row_sum))
                out = acc * lane_ops.widen(factor, width)
                packed.store_token_q(
                    s.out, row, out.astype(s.out.dtype), head=group.first, count=group.count,
                    tokens=self.tokens, on_chip=self.on_chip,
                )  # fmt: skip
            s.m[i, used], s.row_sum[i, used], s.acc[i, used] = m, row_sum, acc
        if problem.return_lse:
            for (buffer, row), values in zip(rows, lse, strict=True):
                value = values[0] if self.tokens == 1 else jnp.concatenate(values, axis=0)
                packed.store_lse(s.lse, (buffer,), value, start=row, on_chip=self.on_chip)

    def add_lse(self, sums: list[Any], group: HeadGroup, lse: jax.Array) -> None:
        """Adds a group's log-sum-exp, [rows, 128], to what `spread_lse` makes of each token's."""
        if self.tokens == 1:
            sums[0] += self.spread_lse(group.first, lse)
            return
        size = heads.rows_per_token(self.problem)
        for place in range(group.count * self.tokens):
            head, token = divmod(place, self.tokens)
            sums[token] += self.spread_lse(group.first + head, lse[place * size :][:size])

    def spread_lse(self, head: int, lse: jax.Array) -> jax.Array:
        """One token's log-sum-exp of KV heads from one on, [rows, 128], each row in its own lane.

        Returns:
          [q packing, lanes]; 0 in other lanes.
        """
        _, pack, _, lanes = self.problem.lse_shape
        lse = lane_ops.widen(lse, lanes)
        row = jax.lax.broadcasted_iota(jnp.int32, lse.shape, 0)
        lane = jax.lax.broadcasted_iota(jnp.int32, lse.shape, 1)
        is_own = lane == head * self.problem.q_words + div(row, pack)
        parts = [
            jnp.sum(jnp.where(is_own & (rem(row, pack) == e), lse, 0.0), axis=0, keepdims=True)
            for e in range(pack)
        ]
        return jnp.concatenate(parts, axis=0)

    def reset(
        self,
        group: HeadGroup,
        is_first: Scalar,
        m: jax.Array,
        row_sum: jax.Array,
        acc: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Softmax state before an item: that of an empty sequence if the item is its first."""
        # An attention sink is a key with this score and no value.
        s = self.scratch
        if s.sinks is None:
            m_0 = jnp.full_like(m, MASKED)
        else:
            used = pl.ds(0, heads.rows_per_token(self.problem))
            sinks = [s.sinks[group.first + k, used] for k in range(group.count)]
            sinks = [sink for sink in sinks for _ in range(self.tokens)]
            m_0 = jnp.concatenate(sinks, axis=0)
        row_sum_0 = jnp.full_like(row_sum, 0.0 if s.sinks is None else 1.0)
        return (
            jnp.where(is_first, m_0, m),
            jnp.where(is_first, row_sum_0, row_sum),
            jnp.where(is_first, jnp.zeros_like(acc), acc),
        )
