"""The decode kernel: walks the KV blocks of all decode sequences, `seqs_per_step` at a time.

An *item* is one KV block of one sequence. Items are taken in order from the list of all of them,
so that ragged lengths leave no slot of a step empty but the last step's. `num_buffers - 1` steps
are being fetched while one computes, across sequence boundaries. Each item of a step runs its
own online softmax, which makes them independent chains for the MXU; after the last compute block
the items are joined in order into the state of the running sequence.

Queries, new keys and values, and outputs move in blocks of `bq_sz` sequences (a decode sequence
has one token, so token i is sequence i); `q_blocks.py` does that.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels import online_softmax, packed, pages
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.q_blocks import QBlocks
from rpa_kernels.decode.scratch import Scratch
from rpa_kernels.ints import cdiv
from rpa_kernels.mask import mask_scores
from rpa_kernels.online_softmax import spread
from rpa_kernels.pages import Meta, PagedCache
from rpa_kernels.problem import Problem
from rpa_kernels.stagger import staggered
from rpa_kernels.target import Target

Ref = Any
Scalar = Any

# Chains between the stages of one chain: enough to cover the MXU's result latency, few enough
# that their scores stay in registers.
CHAIN_LAG = 4


class Place(NamedTuple):
    """A place in the list of items: sequence and KV block within it."""

    seq: Scalar
    block: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Scalars of one item. One past the last sequence has no tokens and writes to spare rows."""

    seq: Scalar
    block: Scalar
    is_real: Scalar
    start: Scalar  # position of the block's first token
    num_cached: Scalar  # tokens of the block that are in the cache
    num_tokens: Scalar  # the same and the new token, if it falls in the block
    kv_len: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """Refs and statics of one kernel call; methods are its phases."""

    meta: Meta
    cache: PagedCache
    sinks: Ref | None
    scratch: Scratch
    q_blocks: QBlocks
    problem: Problem
    config: DecodeConfig
    target: Target
    strided: bool

    @property
    def num_seqs(self) -> Scalar:
        """Decode sequences in the batch."""
        return self.meta.distribution[0]

    def item_at(self, place: Place) -> Item:
        """Reads the lengths of one item."""
        is_real = place.seq < self.num_seqs
        kv_len = self.meta.kv_lens[jnp.where(is_real, place.seq, 0)]
        base = pages.window_start(kv_len - 1, self.problem)
        start = base + place.block * self.config.bkv_sz
        num_tokens = jnp.where(is_real, jnp.minimum(kv_len - start, self.config.bkv_sz), 0)
        cached = kv_len - int(self.problem.update_kv_cache)
        return Item(
            seq=place.seq,
            block=place.block,
            is_real=is_real,
            start=start,
            num_cached=jnp.minimum(num_tokens, cached - start),
            num_tokens=num_tokens,
            kv_len=kv_len,
        )

    def after(self, item: Item) -> Place:
        """The place after an item; stays past the last sequence."""
        more = item.start + self.config.bkv_sz < item.kv_len
        same = jnp.logical_and(more, item.is_real)
        step = jnp.logical_and(jnp.logical_not(more), item.is_real).astype(jnp.int32)
        return Place(item.seq + step, jnp.where(same, item.block + 1, 0))

    def items_from(self, place: Place) -> tuple[list[Item], Place]:
        """The items of one step and the place of the next step."""
        items = []
        for _ in range(self.config.seqs_per_step):
            items.append(self.item_at(place))
            place = self.after(items[-1])
        return items, place

    def start_fetch(self, slot: Scalar, place: Place) -> Place:
        """Starts fetching the step at `place`; returns the place of the step after it."""
        items, following = self.items_from(place)
        for g, item in enumerate(items):
            self.cache.start_fetch(
                self.scratch.kv.at[slot],
                self.scratch.kv_sems.at[slot],
                row=g * self.config.bkv_sz,
                seq=item.seq,
                start=item.start,
                num_tokens=item.num_cached,
                max_tokens=self.config.bkv_sz,
            )
        return following

    def wait_fetch(self, slot: Scalar, items: list[Item]) -> None:
        """Waits for the step's cached tokens and puts new tokens behind them."""
        s, words, bkv_sz = self.scratch, self.problem.kv_words, self.config.bkv_sz
        self.cache.wait(s.kv.at[slot], s.kv_sems.at[slot], sum(i.num_cached for i in items))
        if not self.problem.update_kv_cache:
            return
        for g, item in enumerate(items):
            # Without a branch: an item without a new token stores to the spare row.
            has_new = item.num_cached < item.num_tokens
            row = jnp.where(has_new, g * bkv_sz + item.num_cached, len(items) * bkv_sz)
            new = s.kv_new[self.q_blocks.row(item.seq, item.is_real)]
            s.kv[slot, row, pl.ds(0, words)] = new

    def begin(self, items: list[Item]) -> None:
        """Loads the items' queries and clears their softmax state."""
        s, problem = self.scratch, self.problem
        for g, item in enumerate(items):
            block, row = self.q_blocks.row(item.seq, item.is_real)
            for head in range(problem.num_kv_heads):
                q = packed.load_token_q(s.q, (block, row), head=head, strided=self.strided)
                s.scaled_q[g, head] = online_softmax.scale_q(q, problem)
        s.item_m[...] = jnp.full_like(s.item_m, online_softmax.MASKED)
        s.item_sums[...] = jnp.zeros_like(s.item_sums)
        s.item_acc[...] = jnp.zeros_like(s.item_acc)

    def attend(self, slot: Scalar, items: list[Item]) -> None:
        """Attends every item to its block, one compute block after another."""
        csz = self.config.bkv_csz
        longest = items[0].num_tokens
        for item in items[1:]:
            longest = jnp.maximum(longest, item.num_tokens)

        @pl.loop(0, cdiv(longest, csz))
        def _(tile: jax.Array) -> None:
            first = tile * csz
            is_full = True
            for item in items:
                is_full &= first + csz <= item.num_tokens
                if self.problem.sliding_window is not None:
                    oldest = item.kv_len - self.problem.sliding_window
                    is_full &= item.start + first >= oldest

            @pl.when(is_full)
            def _() -> None:
                self.attend_tile(slot, items, first, masked=False)

            @pl.when(jnp.logical_not(is_full))
            def _() -> None:
                self.attend_tile(slot, items, first, masked=True)

    def attend_tile(self, slot: Scalar, items: list[Item], first: Scalar, *, masked: bool) -> None:
        """Attends every item to compute block [first, first + bkv_csz) of its KV block."""
        s, problem, csz = self.scratch, self.problem, self.config.bkv_csz
        heads = problem.num_kv_heads
        mxu_dtype = online_softmax.matmul_dtype(problem)

        def score(chain: int, _: None) -> tuple[jax.Array, jax.Array]:
            g, head = divmod(chain, heads)
            k, v = packed.load_kv(
                s.kv,
                (slot,),
                head=head,
                start=g * self.config.bkv_sz + first,
                count=csz,
                fused=problem.fuses_kv,
                dtype=problem.kv_dtype,
                num_valid=items[g].num_tokens - first if masked else None,
                strided=self.strided,
            )
            scores = online_softmax.scores(s.scaled_q[g, head], k.astype(mxu_dtype), problem)
            return scores, v.astype(mxu_dtype)

        def soften(chain: int, carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            g, head = divmod(chain, heads)
            scores, v = carried
            if masked:
                item = items[g]
                scores = mask_scores(
                    scores, item.kv_len - 1, item.start + first, item.kv_len, problem
                )
            p, alpha = online_softmax.update(
                scores, s.item_m.at[g, head], s.item_sums.at[g, head], self.target, mxu_dtype
            )
            return p, v, alpha

        def weigh(chain: int, carried: tuple[jax.Array, ...]) -> None:
            g, head = divmod(chain, heads)
            p, v, alpha = carried
            acc = s.item_acc[g, head]
            pv = online_softmax.weigh(p, v)
            s.item_acc[g, head] = online_softmax.spread(alpha, acc.shape[1]) * acc + pv

        staggered(len(items) * heads, (score, soften, weigh), CHAIN_LAG)

    def join(self, items: list[Item]) -> None:
        """Joins the items, in order, into the running sequence, and stores outputs.

        The output row is stored after every item of its sequence; the last one stays.
        """
        s, problem = self.scratch, self.problem
        v_scale = problem.v_scale or 1.0
        for head in range(problem.num_kv_heads):
            m, sums, acc = s.m[head], s.sums[head], s.acc[head]
            for g, item in enumerate(items):
                is_first = item.block == 0
                m, sums, acc = self.reset(head, is_first, m, sums, acc)
                item_m = s.item_m[g, head]
                m_new = jnp.maximum(m, item_m)
                old, new = jnp.exp2(m - m_new), jnp.exp2(item_m - m_new)
                m = m_new
                sums = old * sums + new * s.item_sums[g, head]
                lanes = acc.shape[1]
                acc = spread(old, lanes) * acc + spread(new, lanes) * s.item_acc[g, head]
                out = acc * spread(v_scale / sums, lanes)
                block, row = self.q_blocks.row(item.seq, item.is_real)
                packed.store_token_q(
                    s.out, (block, row), out.astype(s.out.dtype), head=head, strided=self.strided
                )
            s.m[head], s.sums[head], s.acc[head] = m, sums, acc

    def reset(
        self,
        head: int,
        is_first: Scalar,
        m: jax.Array,
        sums: jax.Array,
        acc: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Softmax state before an item: that of an empty sequence if the item is its first."""
        # An attention sink is a key with this score and no value.
        s = self.scratch
        if s.sinks is None:
            m_0 = jnp.full_like(m, online_softmax.MASKED)
        else:
            m_0 = s.sinks[head, pl.ds(0, m.shape[0])]
        sums_0 = jnp.full_like(sums, 0.0 if s.sinks is None else 1.0)
        return (
            jnp.where(is_first, m_0, m),
            jnp.where(is_first, sums_0, sums),
            jnp.where(is_first, jnp.zeros_like(acc), acc),
        )

    def run(self) -> None:
        """Prologue, steps, epilogue; does nothing without decode sequences."""

        @pl.when(self.num_seqs > 0)
        def _() -> None:
            place = Place(jnp.int32(0), jnp.int32(0))
            self.q_blocks.start()
            ahead = place
            for slot in range(self.config.num_buffers - 1):
                ahead = self.start_fetch(slot, ahead)
            pages.fetch_sinks(self.sinks, self.scratch.sinks, self.scratch.sinks_sem)
            self.q_blocks.wait_first()
            jax.lax.while_loop(
                lambda carry: carry[1].seq < self.num_seqs, self.step, (jnp.int32(0), place, ahead)
            )
            self.q_blocks.drain()

    def step(self, carry: tuple[Scalar, Place, Place]) -> tuple[Scalar, Place, Place]:
        """One step: prefetch, wait, attend, join."""
        slot, place, ahead = carry
        last_slot = self.config.num_buffers - 1
        free = jnp.where(slot == 0, last_slot, slot - 1)
        ahead = self.start_fetch(free, ahead)
        items, following = self.items_from(place)
        self.q_blocks.advance(items[0].seq, [(item.seq, item.is_real) for item in items])
        self.begin(items)
        self.wait_fetch(slot, items)
        self.attend(slot, items)
        self.join(items)
        return jnp.where(slot == last_slot, 0, slot + 1), following, ahead


def decode_kernel(
    *refs: Ref,
    problem: Problem,
    config: DecodeConfig,
    target: Target,
    strided: bool,
) -> None:
    """Body of the Pallas call; `launch.py` says what `refs` are.

    Args:
      refs: Scalar prefetch (kv_lens, page_indices, cu_q_lens, distribution); q, kv_new, KV cache
        and, with sinks, sinks (`problem.sinks_shape`); outputs out and KV cache; scratch.
      problem: Static shapes and features.
      config: Block sizes.
      target: What the chip can do.
      strided: Which body of `packed` to use.
    """
    *scalars, scratch = refs
    kv_lens, page_indices, cu_q_lens, distribution, q_hbm, kv_new_hbm, _, *rest = scalars
    sinks = rest.pop(0) if problem.has_sinks else None
    out_hbm, cache_hbm = rest
    meta = Meta(
        kv_lens=kv_lens,
        page_indices=page_indices,
        cu_q_lens=cu_q_lens,
        distribution=distribution,
        pages_per_seq=problem.pages_per_seq,
    )
    cache = PagedCache(meta=meta, hbm=cache_hbm, problem=problem)
    q_blocks = QBlocks(
        meta=meta, q=q_hbm, kv_new=kv_new_hbm, out=out_hbm, cache=cache, scratch=scratch,
        problem=problem, config=config,
    )  # fmt: skip
    Kernel(
        meta=meta, cache=cache, sinks=sinks, scratch=scratch, q_blocks=q_blocks,
        problem=problem, config=config, target=target, strided=strided,
    ).run()  # fmt: skip
