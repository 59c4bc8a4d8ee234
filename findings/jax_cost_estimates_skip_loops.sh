#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1: `pl.estimate_cost`, which is there to fill `pallas_call(cost_estimate=...)`, counts
# nothing within `fori_loop`, `scan`, `cond` and `while`, and no `exp2` or `rsqrt`. It gives no warning: what it
# does not know costs 0. A loop of constant length is no exception.
#
# Who is hurt: whoever estimates an attention kernel by its reference. The one below walks its KV in 8 blocks, as
# kernels do. In a Python loop it is given 135 million FLOPs and 264,192 transcendentals, in a `fori_loop` 32,768 FLOPs (the
# division at the end) and none; in base 2 it is given no transcendentals either way. Utilisation computed from such numbers
# is low by a factor of 4,000. Count by hand, or unroll for the estimate.
# Needs Python 3.12 or later, as jax 0.12.0.1 does: PYTHON=python3.12 bash ...
# Source: jax/_src/pallas/cost_estimate.py; its rules are by primitive, and a primitive without one costs 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import importlib.metadata

import jax, jax.numpy as jnp
from jax.experimental import pallas as pl

QUERIES, TOKENS, DIM, BLOCK = 256, 1024, 128, 128
q = jax.ShapeDtypeStruct((QUERIES, DIM), jnp.float32)
kv = jax.ShapeDtypeStruct((TOKENS, DIM), jnp.float32)


def attention(exp, walk):
    """Online softmax over KV blocks; `walk(n, body, carry)` runs the steps."""

    def run(q, k, v):
        def step(i, carry):
            top, total, out = carry
            rows = lambda x: jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK)
            scores = q @ rows(k).T
            new = jnp.maximum(top, scores.max(axis=1, keepdims=True))
            p, alpha = exp(scores - new), exp(top - new)
            return new, total * alpha + p.sum(axis=1, keepdims=True), out * alpha + p @ rows(v)

        column = jnp.full((QUERIES, 1), -1e30, jnp.float32)
        _, total, out = walk(TOKENS // BLOCK, step, (column, jnp.zeros_like(column), jnp.zeros_like(q)))
        return out / total

    return run


def python(n, step, carry):
    for i in range(n):
        carry = step(i, carry)
    return carry


def fori(n, step, carry):
    return jax.lax.fori_loop(0, n, step, carry)


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")))
found = {}
for walk in (python, fori):
    for exp in (jnp.exp, jnp.exp2):
        cost = pl.estimate_cost(attention(exp, walk), q, kv, kv)
        found[walk, exp] = cost.flops, cost.transcendentals
        print(f"{walk.__name__:6} loop, {exp.__name__:4}: {cost.flops:11,} FLOPs, "
              f"{cost.transcendentals:7,} transcendentals, {cost.bytes_accessed:,} bytes")
x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
n = jax.ShapeDtypeStruct((), jnp.int32)
branch = pl.estimate_cost(lambda n, x: jax.lax.cond(n > 0, lambda x: x @ x, lambda x: -x @ x, x), n, x)
print(f"a cond whose branches both multiply 256 x 256 matrices: {branch.flops} FLOPs")
products = 2 * 2 * QUERIES * TOKENS * DIM
assert found[python, jnp.exp][0] >= products and found[python, jnp.exp][1] > QUERIES * TOKENS
assert found[python, jnp.exp2][1] == 0, "exp2 counts now"
assert found[fori, jnp.exp][0] < products / 1000 and found[fori, jnp.exp][1] == 0, "loops count now"
assert branch.flops < 256**2, "branches count now"
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv "$folder/$version"
  "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version"
  JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/show.py"
done
echo "as recorded"
# Output seen (Python 3.12):
#   jax 0.10.2 jaxlib 0.10.2
#   python loop, exp : 135,045,120 FLOPs, 264,192 transcendentals, 1,310,720 bytes
#   python loop, exp2: 135,045,120 FLOPs,       0 transcendentals, 1,310,720 bytes
#   fori   loop, exp :      32,768 FLOPs,       0 transcendentals, 1,310,720 bytes
#   fori   loop, exp2:      32,768 FLOPs,       0 transcendentals, 1,310,720 bytes
#   a cond whose branches both multiply 256 x 256 matrices: 0 FLOPs
#   jax 0.12.0.1 jaxlib 0.12.0.1
#   python loop, exp : 135,045,120 FLOPs, 264,192 transcendentals, 1,310,720 bytes
#   python loop, exp2: 135,045,120 FLOPs,       0 transcendentals, 1,310,720 bytes
#   fori   loop, exp :      32,768 FLOPs,       0 transcendentals, 1,310,720 bytes
#   fori   loop, exp2:      32,768 FLOPs,       0 transcendentals, 1,310,720 bytes
#   a cond whose branches both multiply 256 x 256 matrices: 0 FLOPs
