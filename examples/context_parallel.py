"""Decode context parallel: each device keeps a part of every context, and the parts are merged.

Page i of a sequence lives on device i % 2. Every device attends with all queries to what it has,
which may be nothing; the log-sum-exp of its part says what it weighs, and `merge_over_axis` makes
the whole of the parts. The new token's K and V go to the device that has its page.

Runs on a machine of two cores: CPU devices stand for chips, the kernels run under the TPU
interpreter of Pallas. On TPUs, leave `interpret` out and let `load_dispatcher()` find the chip.

    python examples/context_parallel.py
"""

import os

# Before jax looks for devices: some of the CPU, and no search for a TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import rpa_tune
from rpa_kernels import inputs, reference
from rpa_kernels.batch import Batch
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem

# The interpreter needs a core for each device: with jax 0.10.2 four never end on two cores.
NUM_DEVICES = 2
CHIP = "v6e"
# For the interpreter: compiling its program takes longer than running it.
QUICK = {"xla_backend_optimization_level": 0}
# What all devices together serve; small, for the interpreter's sake.
WHOLE = Problem(
    num_q_heads=4, num_kv_heads=1, head_dim=128, page_size=16, max_num_tokens=8, max_num_seqs=8,
    pages_per_seq=16, num_pages=64, sm_scale=128**-0.5,
)  # fmt: skip
# One device's part: half of the pages, and every query sees all of them.
PART = replace(
    WHOLE, pages_per_seq=16 // NUM_DEVICES, num_pages=64 // NUM_DEVICES, causal=False,
    update_kv_cache=False, return_lse=True,
)  # fmt: skip
# The second context has one token: one device has nothing of it.
BATCH = Batch(q_lens=(1, 1, 1, 1), kv_lens=(200, 1, 48, 65), num_decode=4, page_seed=2)


def split_pages() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each device has of the contexts, in a cache of its own.

    Returns:
      (page tables int32[devices, sequences, pages], tokens int32[devices, sequences], and whose
      page of the whole cache each page of a device holds, int32[devices, pages]; 0 for none).
    """
    size = WHOLE.page_size
    tables = np.zeros((NUM_DEVICES, PART.max_num_seqs, PART.pages_per_seq), np.int32)
    lengths = np.zeros((NUM_DEVICES, PART.max_num_seqs), np.int32)
    origin = np.zeros((NUM_DEVICES, PART.num_pages), np.int32)
    used = [0] * NUM_DEVICES
    for seq, (kv_len, pages) in enumerate(zip(BATCH.kv_lens, BATCH.pages(WHOLE), strict=True)):
        for i in range(cdiv(kv_len, size)):
            device, place = i % NUM_DEVICES, i // NUM_DEVICES
            tables[device, seq, place] = used[device]
            origin[device, used[device]] = pages[i]
            used[device] += 1
            lengths[device, seq] += min(size, kv_len - i * size)
    return tables, lengths, origin


def write_new_tokens(
    cache: jax.Array, keys: jax.Array, values: jax.Array, table: jax.Array
) -> jax.Array:
    """One device's cache with the new tokens whose pages it has, each the last of its context."""
    device = jax.lax.axis_index("context")
    position = np.asarray(BATCH.kv_lens) - 1
    page = position // WHOLE.page_size
    seqs = np.arange(BATCH.num_seqs)
    local = table[seqs, page // NUM_DEVICES]
    place = jnp.where(page % NUM_DEVICES == device, local, PART.num_pages)  # none: dropped
    new = inputs.prepare_kv(keys, values, PART)[: BATCH.num_seqs]
    return cache.at[place, position % WHOLE.page_size].set(new, mode="drop")


def main() -> None:
    """Runs one step on the mesh, and compares it with the reference on one device."""
    rng = np.random.default_rng(0)
    tokens = WHOLE.max_num_tokens
    shapes = [
        (tokens, WHOLE.num_q_heads, 128), (tokens, WHOLE.num_kv_heads, 128),
        (tokens, WHOLE.num_kv_heads, 128), WHOLE.kv_cache_shape,
    ]  # fmt: skip
    q, k, v, cache = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in shapes)
    arrays = BATCH.arrays(WHOLE)
    expected, _ = reference.ragged_paged_attention(q, k, v, cache, arrays, WHOLE)

    tables, lengths, origin = split_pages()
    dispatcher = rpa_tune.load_dispatcher(chip=CHIP)
    step = rpa_tune.Step.of(BATCH.q_lens, lengths.max(axis=0)[: BATCH.num_seqs], BATCH.distribution)
    plan = dispatcher.plan(PART, step)

    def attend(q, k, v, cache, table, lengths):  # type: ignore[no-untyped-def]
        """One device's part: the new tokens that it has, then attention to its cache alone."""
        cache, table, lengths = cache[0], table[0], lengths[0]
        cache = write_new_tokens(cache, k, v, table)
        out, cache, lse = dispatcher(
            q, k, v, cache, lengths, table.reshape(-1), arrays.cu_q_lens, arrays.distribution,
            plan=plan, sm_scale=PART.sm_scale, use_causal_mask=False, update_kv_cache=False,
            return_lse=True, interpret=pltpu.InterpretParams(),
        )  # fmt: skip
        return out[None], cache[None], lse[None]

    def merge(out, lse):  # type: ignore[no-untyped-def]
        """The whole of the parts, on every device."""
        return rpa_tune.merge_over_axis(out[0], lse[0], "context")

    mesh = Mesh(np.asarray(jax.devices()[:NUM_DEVICES]), ("context",))
    own = P("context")
    share = partial(jax.shard_map, mesh=mesh, check_vma=False)
    attend_parts = jax.jit(
        share(attend, in_specs=(P(),) * 3 + (own,) * 3, out_specs=own),
        compiler_options=QUICK,
    )
    merge_parts = jax.jit(share(merge, in_specs=own, out_specs=P()))
    # One program on TPUs. Here a device that waits for the others in a collective would hold a
    # thread that the interpreter needs to get them there.
    parts, _, lse = jax.block_until_ready(attend_parts(q, k, v, cache[origin], tables, lengths))
    out, _ = merge_parts(parts, lse)

    used = slice(0, BATCH.num_tokens)
    error = float(jnp.max(jnp.abs(out[used].astype(jnp.float32) - expected[used])))
    largest = float(jnp.max(jnp.abs(expected[used])))
    shares = ", ".join(f"{n}" for n in lengths.sum(axis=1))
    print(f"tokens of the contexts on each device: {shares}")
    print(f"output: largest error {error:.4f}, of values up to {largest:.2f}")
    if not error <= 2**-7 * largest:
        raise SystemExit("error: the merged parts disagree with the reference")


if __name__ == "__main__":
    main()
