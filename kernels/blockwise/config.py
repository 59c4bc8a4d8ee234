"""Block sizes of the prefill and mixed families: the record. No jax."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockwiseConfig:
    """Tunables of a kernel that walks query blocks and, for each, KV blocks.

    Attributes:
      bq_sz: Query tokens of one sequence that are fetched, and held, together.
      bq_csz: Query tokens of one compute block; a power of two that divides `bq_sz`.
      bkv_sz: Tokens of one KV block: what is fetched at a time.
      bkv_csz: Tokens of one compute block; divides `bkv_sz`.
      num_buffers: KV blocks in flight: one computes, the others fetch. 2 is double buffering.
      mxu_sums: 1 to get the softmax sums from a column of ones beside V, which saves a widening
        and an addition for each score and is free where V fills half the columns of an MXU, or
        shares its row with K.
    """

    bq_sz: int
    bq_csz: int
    bkv_sz: int
    bkv_csz: int
    num_buffers: int
    mxu_sums: int
