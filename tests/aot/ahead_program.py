"""A caller's program with our attention in it, compiled into jax's cache; run by `test_ahead.py`.

python ahead_program.py FOLDER TOPOLOGY ahead|host

`host` is what a server does: nothing of ours, its options come from its shell.
"""

import contextlib
import sys

import jax

import rpa_tune
from rpa_kernels.problem import Problem
from rpa_tune.artifact import jax_cache
from rpa_tune.families.own_call import abstract_inputs

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=32, max_num_tokens=64, max_num_seqs=8,
    pages_per_seq=8, num_pages=64, sm_scale=0.1,
)  # fmt: skip
dispatcher = rpa_tune.load_dispatcher("v6e", on_miss="heuristic")


def step(*arrays):
    out, kv_cache = rpa_tune.ragged_paged_attention(*arrays, plan=dispatcher, sm_scale=0.1)
    return out * 2, kv_cache


folder, topology, mode = sys.argv[1:]
sharding = jax.sharding.SingleDeviceSharding(jax_cache.devices("v6e", topology)[0])
arguments = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in abstract_inputs(PROBLEM)
]
before = jax.config.jax_compilation_cache_dir
with jax_cache.jax_cache(folder) if mode == "ahead" else contextlib.nullcontext():
    jax.jit(step, donate_argnums=(3,)).lower(*arguments).compile()
assert jax.config.jax_compilation_cache_dir == before
