"""Which decode sequences each core serves. No jax."""

from typing import Any

import numpy as np

from rpa_kernels import cores
from rpa_kernels.batch import BatchArrays
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.window import window_start


def partition(
    problem: Problem, config: DecodeConfig, arrays: BatchArrays, num_cores: int, xp: Any = np
) -> Any:
    """First sequence of each core, and the end: int32[num_cores + 1].

    Balances KV compute blocks.
    """
    kv_lens = arrays.kv_lens
    q_lens: Any = 1
    if problem.decode_query_size > 1:
        q_lens = arrays.cu_q_lens[1:] - arrays.cu_q_lens[:-1]
    num_tokens = kv_lens - window_start(kv_lens - q_lens, problem, maximum=xp.maximum)
    is_decode = xp.arange(problem.max_num_seqs) < arrays.distribution[0]
    costs = cdiv(num_tokens, config.bkv_csz)
    if problem.sees_cache_only:
        costs = xp.maximum(costs, 1)  # an empty context is work, too: its output
    costs = xp.where(is_decode, costs, 0)
    return cores.balance(costs, num_cores, xp)
