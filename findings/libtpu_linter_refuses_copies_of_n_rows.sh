#!/usr/bin/env bash
# libtpu 0.0.52: the compiler's linter (`vmem_poison_use`) refuses a right Pallas kernel that copies as
# many rows as an operand says. It takes such a copy to have written nothing, so the first load of what
# was copied counts as a use of memory that nobody wrote. With a constant size it passes.
#
# Who is hurt: whoever lints kernels whose copies have the length of their data, as every paged or
# ragged attention kernel's have: they are refused at their first load of queries or KV. The finding
# is false, and because the compile ends with it, nothing behind it is looked at.
# `dma_race` and `bounds_check`, the other targets, pass this kernel: ask for those two.
#
# The kernel loads no row that was not copied. Under the TPU interpreter, which fills memory with NaN
# first, it is right for each n. Nothing runs on a TPU; the compiler needs none.
#
# Needs Python 3.12 or later, as jax 0.12.0.1 does: PYTHON=python3.12 bash ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import functools, importlib.metadata, re, sys

import jax, jax.numpy as jnp, numpy as np
from jax.experimental import pallas as pl, topologies
from jax.experimental.pallas import tpu as pltpu


def kernel(n, x, out, buffer, semaphore, *, copied):
    """Twice the first n[0] rows of x, and zeros."""
    if copied != "nothing":
        rows = pl.ds(0, n[0] if copied == "n rows" else 8)
        copy = pltpu.make_async_copy(x.at[rows], buffer.at[rows], semaphore)
        copy.start()
        copy.wait()
    out[...] = jnp.zeros_like(out)

    @pl.loop(0, n[0])
    def _(row):
        out[pl.ds(row, 1), :] = 2 * buffer[pl.ds(row, 1), :]


def twice(copied, interpret=False):
    return jax.jit(pl.pallas_call(
        functools.partial(kernel, copied=copied),
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec(memory_space=pltpu.HBM)],
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
        interpret=interpret,
    ))


def is_right(copied, n):
    interpret = pltpu.InterpretParams(uninitialized_memory="nan")
    x = np.arange(1024, dtype=np.float32).reshape(8, 128)
    return np.array_equal(twice(copied, interpret)(jnp.array([n]), x), 2 * x * (np.arange(8) < n)[:, None])


def lint(copied):
    device = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    n = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=sharding)
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding)
    try:
        twice(copied).lower(n, x).compile()
        return "passes"
    except jax.errors.JaxRuntimeError as error:
        return re.search(r"\[LLO_LINT\] (.*?) used in", str(error))[1]


target = sys.argv[1]
if target == "vmem_poison_use":
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")))
    for copied in ("8 rows", "n rows"):
        assert all(is_right(copied, n) for n in range(9))
    print("interpreter, n from 0 to 8: both kernels are right")
said = {copied: lint(copied) for copied in ("8 rows", "n rows", "nothing")}
for copied, words in said.items():
    print(f"{target}, a copy of {copied}: {words}")
assert said["8 rows"] == "passes"
if target == "vmem_poison_use":
    assert target in said["n rows"], "the linter knows such copies now"
    assert said["n rows"] == said["nothing"]
else:
    assert said["n rows"] == "passes"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.52
# A compiler without a TPU: no questions to a metadata server, no lock, logs in the folder.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 \
  TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_LOG_DIR="$folder/log"
for target in vmem_poison_use dma_race bounds_check; do
  LIBTPU_INIT_ARGS="--xla_tpu_enable_llo_linter=true --xla_tpu_llo_linter_analyze_tpu_custom_calls=true \
    --xla_tpu_llo_linter_targets=$target" \
    "$folder/venv/bin/python" "$folder/show.py" "$target" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
done
echo "as recorded"
# Output seen (Python 3.12):
#   jax 0.12.0.1 libtpu 0.0.52
#   interpreter, n from 0 to 8: both kernels are right
#   vmem_poison_use, a copy of 8 rows: passes
#   vmem_poison_use, a copy of n rows: vmem_poison_use :: Poisoned Vmem value use detected:
#     @(jit_wrapped:tpu_custom_call.1) value {poisoned-by-scope-open-allocation3}
#   vmem_poison_use, a copy of nothing: the same
#   dma_race and bounds_check, all three: passes
