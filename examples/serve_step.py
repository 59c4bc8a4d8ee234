"""One step of a serving engine: ask the dispatcher for a plan, run attention, check the answer.

Runs on any machine: the kernels run under the TPU interpreter of Pallas on the CPU, with its race
detector on. On a TPU, leave `interpret` out and let `load_dispatcher()` find the chip.

    python examples/serve_step.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import rpa_tune
from rpa_kernels import reference, watch
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem

# The interpreter needs no TPU; looking for one takes seconds where there is none.
jax.config.update("jax_platforms", "cpu")

CHIP = "v6e"
# Llama-3-8B, 32 query heads and 8 KV heads of 128, with the maxima of the quickstart sweep, so that
# its rows are found. The batch itself is small, for the interpreter's sake.
PROBLEM = Problem(
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    page_size=128,
    max_num_tokens=1024,
    max_num_seqs=64,
    pages_per_seq=64,
    num_pages=32,
    sm_scale=128**-0.5,
)
# Two sequences in decode, one in the middle of a chunked prefill, one at its start.
BATCH = Batch(q_lens=(1, 1, 20, 9), kv_lens=(300, 129, 148, 9), num_decode=2, page_seed=1)


def random_inputs(seed: int) -> list[jax.Array]:
    """Queries, new keys, new values and a KV cache full of earlier tokens."""
    rng = np.random.default_rng(seed)
    tokens, dim = PROBLEM.max_num_tokens, PROBLEM.head_dim
    shapes = [
        (tokens, PROBLEM.num_q_heads, dim),
        (tokens, PROBLEM.num_kv_heads, dim),
        (tokens, PROBLEM.num_kv_heads, dim),
        PROBLEM.kv_cache_shape,
    ]
    return [jnp.asarray(rng.standard_normal(shape), PROBLEM.q_dtype) for shape in shapes]


def main() -> None:
    """Plans, runs and checks one step."""
    dispatcher = rpa_tune.load_dispatcher(chip=CHIP)
    step = rpa_tune.Step.of(BATCH.q_lens, BATCH.kv_lens, BATCH.distribution)
    plan = dispatcher.plan(PROBLEM, step)
    for launch in plan.launches:
        print(f"{launch.family}: {launch.config}\n  {launch.why}")

    arrays = BATCH.arrays(PROBLEM)
    inputs = random_inputs(seed=0)  # queries and cache are donated below: the reference goes first
    expected, expected_cache = reference.ragged_paged_attention(*inputs, arrays, PROBLEM)
    with watch.watched() as seen:
        out, cache = dispatcher(
            *inputs,
            arrays.kv_lens,
            arrays.page_indices,
            arrays.cu_q_lens,
            arrays.distribution,
            plan=plan,
            sm_scale=PROBLEM.sm_scale,
            interpret=watch.interpreter("on_wait"),
        )
        out.block_until_ready()

    used = slice(0, BATCH.num_tokens)
    error = float(jnp.max(jnp.abs(out[used].astype(jnp.float32) - expected[used])))
    largest = float(jnp.max(jnp.abs(expected[used])))
    same_cache = bool(jnp.array_equal(cache, expected_cache))
    print(f"output: largest error {error:.4f}, of values up to {largest:.2f}")
    print(f"KV cache: {'equal' if same_cache else 'DIFFERENT'}")
    has_race = seen.has_race or seen.unwaited_semaphores > 0
    print(f"data races: {'FOUND' if has_race else 'none'}")
    # bfloat16 has 8 significant bits: probabilities and outputs are rounded to it.
    if error > 2**-7 * largest or not same_cache or has_race:
        raise SystemExit("error: the kernels disagree with the reference")
    decode_only = dispatcher.plan(PROBLEM, rpa_tune.Step.of([1, 1], [300, 129], [2, 2, 2]))
    print(f"a decode-only step would launch: {', '.join(decode_only.families)}")


if __name__ == "__main__":
    main()
