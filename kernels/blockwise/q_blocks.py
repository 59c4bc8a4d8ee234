"""Query blocks: fetched one ahead, prepared for the products, and their outputs sent."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import lane_ops, online_softmax, packed
from rpa_kernels.blockwise import mxu_sums, walk
from rpa_kernels.blockwise.chains import Chains, query_rows
from rpa_kernels.blockwise.scratch import Scratch
from rpa_kernels.blockwise.walk import Block
from rpa_kernels.calls import Refs
from rpa_kernels.ints import cdiv
from rpa_kernels.layout import LANES
from rpa_kernels.problem import Problem

Ref = Any
Scalar = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class QBlocks:
    """Refs and statics; a parity says which of two buffers a block is in.

    Attributes:
      refs: Has prepared queries, outputs and log-sum-exp in HBM.
      scratch: Scratch refs.
      paths: `all_chains`; the one that a block takes says how its rows are grouped.
      problem: Static shapes and features.
      on_chip: Which body of `packed` to use.
    """

    refs: Refs
    scratch: Scratch
    paths: tuple[Chains, ...]
    problem: Problem
    on_chip: bool

    def start(self, parity: Scalar, block: Block) -> None:
        """Starts fetching a query block."""
        for copy in self._fetch(parity, block):
            copy.start()

    def begin(self, parity: Scalar, block: Block) -> None:
        """Waits for a query block, prepares it and clears its softmax state."""
        for copy in self._fetch(parity, block):
            copy.wait()
        walk.on_path(block, self.paths, lambda chains: self._load(parity, block, chains.granule))

    def finish(self, parity: Scalar, block: Block) -> None:
        """Divides by the softmax denominators and starts sending the output."""
        self._wait_sent(parity)
        walk.on_path(block, self.paths, lambda chains: self._divide(parity, block, chains.granule))
        s = self.scratch
        s.unsent[parity] = block.num_q
        for vmem, hbm in self._outputs():
            pltpu.make_async_copy(
                vmem.at[parity, pl.ds(0, block.num_q)],
                hbm.at[pl.ds(block.token, block.num_q)],
                s.out_sems.at[parity],
            ).start()

    def reset(self) -> None:
        """Before the first block: nothing is on its way out."""
        self.scratch.unsent[0] = 0
        self.scratch.unsent[1] = 0

    def drain(self) -> None:
        """Waits until all outputs are sent."""
        self._wait_sent(0)
        self._wait_sent(1)

    def _outputs(self) -> list[tuple[Ref, Ref]]:
        """What is sent: buffers of two query blocks in VMEM, and where to in HBM."""
        pairs = [(self.scratch.out, self.refs.out)]
        if self.problem.return_lse:
            pairs.append((self.scratch.lse, self.refs.lse))
        return pairs

    def _fetch(self, parity: Scalar, block: Block) -> list[Any]:
        """Copies that bring a query block in."""
        pairs = [(self.refs.q, self.scratch.q)]
        if self.problem.is_latent:
            pairs.append((self.refs.q_rope, self.scratch.q_rope))
        return [
            pltpu.make_async_copy(
                hbm.at[pl.ds(block.token, block.num_q)],
                vmem.at[parity, pl.ds(0, block.num_q)],
                self.scratch.q_sems.at[parity],
            )
            for hbm, vmem in pairs
        ]

    def _wait_sent(self, parity: Scalar) -> None:
        """Waits until an output buffer is sent."""
        unsent = self.scratch.unsent[parity]

        @pl.when(unsent > 0)
        def _() -> None:
            for vmem, _ in self._outputs():
                rows = vmem.at[parity, pl.ds(0, unsent)]
                pltpu.make_async_copy(rows, rows, self.scratch.out_sems.at[parity]).wait()

    def _load(self, parity: Scalar, block: Block, size: int) -> None:
        """Prepares queries, and clears their softmax state, in granules of `size` tokens."""
        s, problem = self.scratch, self.problem

        @pl.loop(0, cdiv(block.num_q, size))
        def _(granule: jax.Array) -> None:
            rows = self._rows(granule, size)
            for head in range(problem.num_kv_heads):
                q = self._load_q(s.q, parity, head, granule, size)
                if problem.is_latent:
                    rope = self._load_q(s.q_rope, parity, head, granule, size)
                    q = jnp.concatenate([q, rope], axis=1)
                s.scaled_q[head, rows] = online_softmax.scale_q(q, problem, s.scaled_q.dtype)
                self._clear(head, rows, size)

    def _load_q(self, ref: Ref, parity: Scalar, head: int, granule: Scalar, size: int) -> jax.Array:
        """Queries of one head in a granule of `size` tokens, one word of them after another."""
        words = [
            packed.load_q(
                ref, (parity,), head=head, word=word, start=granule * size, count=size,
                on_chip=self.on_chip,
            )
            for word in range(self.problem.q_words)
        ]  # fmt: skip
        return jnp.concatenate(words, axis=0)

    def _rows(self, granule: Scalar, size: int) -> Any:
        """Rows of the softmax state that hold a granule of `size` tokens."""
        count = query_rows(self.problem, size)
        return pl.ds(pl.multiple_of(granule * count, count), count)

    def _clear(self, head: int, rows: Any, size: int) -> None:
        """Sets the softmax state of a granule of `size` tokens to that of an empty context."""
        s = self.scratch
        words, pack = self.problem.q_shape[2:4]
        s.acc[head, rows] = jnp.zeros((rows.size, s.acc.shape[2]), jnp.float32)
        if s.row_sum is not None:
            s.row_sum[head, rows] = jnp.zeros((rows.size, LANES), jnp.float32)
        if s.sinks is None:
            s.m[head, rows] = jnp.full((rows.size, LANES), online_softmax.MASKED, jnp.float32)
            return
        # An attention sink is a key with this score and no value.
        sinks = [s.sinks[head, pl.ds(word * pack, pack)] for word in range(words)]
        s.m[head, rows] = jnp.concatenate([jnp.tile(sink, (size, 1)) for sink in sinks], axis=0)
        ones = jnp.ones((rows.size, LANES), jnp.float32)
        if s.row_sum is not None:
            s.row_sum[head, rows] = ones / LANES
        else:
            lanes = mxu_sums.sum_lanes(self.problem)
            s.acc[head, rows, lanes] = ones[:, : lanes.size]

    def _divide(self, parity: Scalar, block: Block, size: int) -> None:
        """Stores outputs: what was accumulated over the denominators, in granules of `size`."""
        s, problem = self.scratch, self.problem
        words, pack, lanes = problem.q_shape[2:]

        @pl.loop(0, cdiv(block.num_q, size))
        def _(granule: jax.Array) -> None:
            rows = self._rows(granule, size)
            lse: Any = None
            if problem.return_lse:
                lse = jnp.zeros((size * pack, problem.lse_shape[-1]), jnp.float32)
            for head in range(problem.num_kv_heads):
                acc = s.acc[head, rows]
                by_lane = None if s.row_sum is None else s.row_sum[head, rows]
                if by_lane is None:
                    total = mxu_sums.total(acc, problem)
                else:
                    total = lane_ops.over_lanes(by_lane)
                factor = (problem.v_scale or 1.0) / total
                if problem.return_lse:
                    m = s.m[head, rows]
                    factor = jnp.where(online_softmax.is_empty(m), 0.0, factor)
                    lse = self._with_lse(lse, head, online_softmax.log_sum_exp(m, total))
                out = acc[:, :lanes] * lane_ops.widen(factor, lanes)
                for word in range(words):
                    own = out[word * size * pack : (word + 1) * size * pack]
                    packed.store_q(
                        s.out, (parity,), own.astype(s.out.dtype), head=head, word=word,
                        start=granule * size, on_chip=self.on_chip,
                    )  # fmt: skip
            if problem.return_lse:
                start = granule * size
                packed.store_lse(s.lse, (parity,), lse, start=start, on_chip=self.on_chip)

    def _with_lse(self, lse: jax.Array, head: int, own: jax.Array) -> jax.Array:
        """The log-sum-exp of a granule, [tokens * q packing, lanes], with that of a KV head in it.

        Args:
          lse: Of the heads before it.
          head: KV head.
          own: Its own, of all rows: [words * tokens * q packing, 128] with equal lanes.
        """
        lane = jax.lax.broadcasted_iota(jnp.int32, lse.shape, 1)
        words, count = self.problem.q_words, lse.shape[0]
        for word in range(words):
            rows = lane_ops.widen(own[word * count : (word + 1) * count], lse.shape[1])
            lse = jnp.where(lane == head * words + word, rows, lse)
        return lse
