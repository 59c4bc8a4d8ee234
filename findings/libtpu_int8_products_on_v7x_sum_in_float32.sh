#!/usr/bin/env bash
# libtpu 0.0.42.1, v7x: a product of int8 with an int32 result inside a Pallas kernel is computed in bfloat16,
# summed in float32 over the whole depth, and made int32 once at the end. float32 holds no odd number
# above 2**24, which 1,041 products of 127 x 127 reach, so the result of a deeper product need not be exact, without
# a warning. XLA's own product of the same arrays on v7x makes int32 of every 256 products and adds those,
# which is exact; v6e multiplies int8 itself and sums int32.
#
# Who is hurt: whoever ports a quantised kernel (int8 weights and activations, int8 KV) to v7x and
# counts on exact int32 sums, or on the double rate of int8 that v5e, v5p and v6e have.
#
# Nothing runs on a TPU; the compiler needs none. What is shown is the compiled schedule.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import collections, importlib.metadata, os, pathlib, re, sys

import jax, jax.numpy as jnp
from jax.experimental import pallas as pl, topologies

TOPOLOGIES = {"v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
ROWS, DEPTH, COLUMNS = 32, 8192, 512
REGISTERS = ROWS * COLUMNS // 1024  # of the result, in int32


def xla(x, w):
    return jax.lax.dot(x, w, preferred_element_type=jnp.int32)


def pallas(x, w):
    def kernel(x, w, out):
        out[...] = xla(x[...], w[...])

    return pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.int32), name="product"
    )(x, w)


def instructions(chip, function, folder):
    """How often each vector instruction stands in the schedule of the product."""
    before = set(folder.iterdir())
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((ROWS, DEPTH), jnp.int8, sharding=sharding)
    w = jax.ShapeDtypeStruct((DEPTH, COLUMNS), jnp.int8, sharding=sharding)
    jax.jit(function).lower(x, w).compile()
    found = collections.Counter()
    for file in set(folder.iterdir()) - before:
        if re.search(r"(product|fusion).*-final_bundles", file.name) and "analysis" not in file.name:
            found.update(re.findall(r"= (v[a-z0-9_.]+)", file.read_text()))
    return found


def seen(counts, *patterns):
    return [sum(n for name, n in counts.items() if re.match(p, name)) for p in patterns]


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")))
PATTERNS = {
    "bfloat16 or float32 products": r"vmatmul\S*(bf16|f32)", "int8 products": r"vmatmul\S*s8",
    "float32 to int32": r"vcvt\.f32\.s32", "sums of int32": r"vadd\.s32",
}
found = {}
for chip, function in (("v7x", pallas), ("v7x", xla), ("v6e", pallas)):
    counts = instructions(chip, function, pathlib.Path(sys.argv[1]))
    found[chip, function] = dict(zip(PATTERNS, seen(counts, *PATTERNS.values())))
    print(f"{chip} {function.__name__:6}", found[chip, function])
ours, theirs, older = found.values()
print(f"the result has {REGISTERS} registers and a depth of {DEPTH}: up to {127 * 127 * DEPTH:,}, 2**24 is {2**24:,}")
assert ours["int8 products"] == 0 == ours["sums of int32"], "the kernel multiplies or sums integers now"
assert ours["float32 to int32"] == REGISTERS, "not one conversion a register now"
assert theirs["float32 to int32"] == REGISTERS * DEPTH // 256, "XLA converts at other depths now"
assert theirs["sums of int32"] == theirs["float32 to int32"] - REGISTERS, "XLA does not sum int32 now"
assert older["int8 products"] > 0 == older["float32 to int32"], "v6e differs now"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
mkdir "$folder/dumps"
# A compiler without a TPU: no questions to a metadata server, no lock, logs in the folder.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 \
  TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_LOG_DIR="$folder/log"
LIBTPU_INIT_ARGS="--xla_jf_dump_to=$folder/dumps --xla_jf_dump_llo_text=true" \
  "$folder/venv/bin/python" "$folder/show.py" "$folder/dumps" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
echo "as recorded"
# Output seen (Python 3.11):
#   jax 0.10.2 libtpu 0.0.42.1
#   v7x pallas {'bfloat16 or float32 products': 128, 'int8 products': 0, 'float32 to int32': 16, 'sums of int32': 0}
#   v7x xla    {'bfloat16 or float32 products': 256, 'int8 products': 0, 'float32 to int32': 512, 'sums of int32': 496}
#   v6e pallas {'bfloat16 or float32 products': 0, 'int8 products': 64, 'float32 to int32': 0, 'sums of int32': 240}
#   the result has 16 registers and a depth of 8192: up to 132,128,768, 2**24 is 16,777,216
