"""Decode: one query token a sequence, sequences handled in mini-batches."""

from rpa_kernels.decode.family import make_family

FAMILY = make_family("decode")

__all__ = ["FAMILY"]
