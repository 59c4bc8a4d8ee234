#!/usr/bin/env bash
# libtpu 0.0.42.1: with `--xla_jf_dump_static_llo_profile_to=DIR`, which only asks for estimates of what
# each operation costs, a program does not compile that compiles without: "Ran out of memory in memory
# space vmem". What a Pallas kernel may use (`vmem_limit_bytes`) then counts as used, and what it does
# use is added to that. With a limit of half of VMEM it compiles.
#
# Who is hurt: whoever gives a kernel all of VMEM as its limit and wants to know what the operations
# around it cost. The kernel below uses 1 MiB of the 128.
#
# Nothing runs on a TPU; the compiler needs none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import importlib.metadata, pathlib, sys

import jax, jax.numpy as jnp
from jax.experimental import pallas as pl, topologies
from jax.experimental.pallas import tpu as pltpu


def kernel(x, out):
    out[...] = 2 * x[...]


def outcome(mib):
    """Of a compile of a kernel that may use so much of VMEM, and a sum behind it."""
    double = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((1024, 128), jnp.float32),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=mib << 20),
        name="double",
    )
    device = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((1024, 128), jnp.float32, sharding=sharding)
    try:
        jax.jit(lambda x: jnp.cumsum(double(x), axis=0)).lower(x).compile()
        return "compiles"
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]


flag = sys.argv[1] if sys.argv[1:] else ""
if not flag:
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")))
said = {mib: outcome(mib) for mib in (64, 128)}
for mib, words in said.items():
    print(f"{'with' if flag else 'without'} the flag, a limit of {mib:3} MiB: {words}")
assert said[64] == "compiles"
if flag:
    assert "Ran out of memory in memory space vmem" in said[128], "it compiles now"
    assert list(pathlib.Path(flag).glob("double*_static_llo_profile.textproto")), "no estimates"
else:
    assert said[128] == "compiles"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
mkdir "$folder/estimates"
# A compiler without a TPU: no questions to a metadata server, no lock, logs in the folder.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 \
  TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_LOG_DIR="$folder/log"
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
LIBTPU_INIT_ARGS="--xla_jf_dump_static_llo_profile_to=$folder/estimates" \
  "$folder/venv/bin/python" "$folder/show.py" "$folder/estimates" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
echo "as recorded"
# Output seen (Python 3.11):
#   jax 0.10.2 libtpu 0.0.42.1
#   without the flag, a limit of  64 MiB: compiles
#   without the flag, a limit of 128 MiB: compiles
#   with the flag, a limit of  64 MiB: compiles
#   with the flag, a limit of 128 MiB: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of
#     memory in memory space vmem. Used 128.94M of 127.94M vmem. Exceeded vmem capacity by 1.00M.
