"""Block sizes of the decode family: the record. No jax."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Tunables of the decode kernel.

    A step walks `seqs_per_step` KV blocks, taken in order from the list of all (sequence, block)
    pairs: whole short sequences, or parts of one long one.

    Attributes:
      bkv_sz: Tokens of one KV block: what is fetched for one sequence at a time.
      bkv_csz: Tokens of one compute block; divides `bkv_sz`. Compute stops at the last compute
        block with a valid token.
      seqs_per_step: KV blocks a step fetches and attends to together.
      num_buffers: Steps in flight: one computes, the others fetch. 2 is double buffering.
      bq_sz: Sequences whose queries, new keys and values, and outputs are moved in one copy.
      strided_copies: 1 to fetch pages by strided descriptors: tokens, or with tokens along lanes
        the heads of a page, then have a gap behind them in VMEM. With 0 a page that is one piece
        stays one, which makes linear descriptors; both forms are as many copies and bytes.
    """

    bkv_sz: int
    bkv_csz: int
    seqs_per_step: int
    num_buffers: int
    bq_sz: int
    strided_copies: int = 0
