"""rpa-tune: tunes, checks and dispatches Ragged Paged Attention kernels for TPUs."""

__version__ = "0.1.0"
