#!/usr/bin/env bash
# libtpu 0.0.42.1 with jax 0.10.2: in a Pallas kernel `n // 128`, `n % 128` and `pl.cdiv(n, 128)` of an int32 are not
# a shift and a mask: they cost 7, 4 and 3 bundles of the scalar unit each, because an int32 may be negative and jax
# rounds towards minus infinity. By `>>` and `&`, or as uint32, the answer is the same for n >= 0 and costs
# none (they share bundles with the rest). Beside it: `//` and `sign` ask which chip the process has, not which it
# compiles for. On a host without a TPU they are refused ("Unsupported TPU device kind: cpu") where `%`, `cdiv` and
# `lax.div` compile; an abstract mesh of the chip answers the question.
#
# Who is hurt: whoever turns token positions into pages and offsets inside a paged kernel: a page number and an offset
# for each copy of a page are 11 bundles; and whoever compiles kernels ahead on a host without the chip.
#
# Source: `_sign_lowering_rule` in jax/_src/pallas/mosaic/lowering.py, which calls `get_tpu_info`; `//` uses `sign`.
#
# Nothing runs on a TPU; the compiler needs none. Bundles are counted, not times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import importlib.metadata, pathlib, re, sys

import jax, jax.numpy as jnp
from jax.experimental import pallas as pl, topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

CHIPS = {"v5e": ("v5e:2x2", "TPU v5 lite"), "v6e": ("v6e:2x2", "TPU v6 lite"), "v7x": ("tpu7x:2x2x1", "TPU7x")}
TIMES = 32
WAYS = {
    "n": lambda n: n,
    "n >> 7": lambda n: n >> 7,
    "n // 128": lambda n: n // 128,
    "lax.div(n, 128)": lambda n: jax.lax.div(n, jnp.int32(128)),
    "uint32(n) // 128": lambda n: (n.astype(jnp.uint32) // jnp.uint32(128)).astype(jnp.int32),
    "n & 127": lambda n: n & 127,
    "n % 128": lambda n: n % 128,
    "pl.cdiv(n, 128)": lambda n: pl.cdiv(n, 128),
    "n // 96": lambda n: n // 96,
    "n % 96": lambda n: n % 96,
}


def compile_for(chip, number, way):
    """Bundles of a kernel that takes `TIMES` scalars one way."""

    def kernel(x, out):
        for i in range(TIMES):
            out[i] = way(x[i])

    name = f"pages_{chip}_{number}_"
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((TIMES,), jnp.int32),
                          in_specs=[smem], out_specs=smem, name=name)
    device = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip][0]).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    jax.jit(call).lower(jax.ShapeDtypeStruct((TIMES,), jnp.int32, sharding=sharding)).compile()
    (schedule,) = (
        file for file in pathlib.Path(sys.argv[1]).glob(f"*{name}*-final_bundles.txt")
        if "schedule-analysis" not in file.name
    )
    return len(re.findall(r"^\s*0x[0-9a-f]+", schedule.read_text(), re.MULTILINE))


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")))
refused = set()
for number, (words, way) in enumerate(WAYS.items()):
    try:
        compile_for("v6e", 100 + number, way)
    except ValueError as error:
        refused.add(words)
        print(f"without an abstract mesh, {words}: {error}")
found = {}
for chip, (_, kind) in CHIPS.items():
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice(device_kind=kind, num_cores=1, platform="tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        counts = {words: compile_for(chip, number, way) for number, (words, way) in enumerate(WAYS.items())}
    found[chip] = {words: (count - counts["n"]) / TIMES for words, count in counts.items()}
    print(f"{chip}, bundles each:", ", ".join(f"{w} {n:.1f}" for w, n in found[chip].items() if w != "n"))
assert refused == {"n // 128", "n // 96"}, "other ways are refused now"
for cost in found.values():
    assert max(cost["n >> 7"], cost["n & 127"], cost["uint32(n) // 128"]) < 0.5
    assert min(cost["n // 128"], cost["n % 128"], cost["pl.cdiv(n, 128)"]) > 2, "divisions are cheap now"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
mkdir "$folder/dumps"
# A compiler without a TPU: no questions to a metadata server, no lock, logs in the folder.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 \
  TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_LOG_DIR="$folder/log"
LIBTPU_INIT_ARGS="--xla_jf_dump_to=$folder/dumps --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles" \
  "$folder/venv/bin/python" "$folder/show.py" "$folder/dumps" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
echo "as recorded"
# Output seen (Python 3.11):
#   jax 0.10.2 libtpu 0.0.42.1
#   without an abstract mesh, n // 128: Unsupported TPU device kind: cpu
#   without an abstract mesh, n // 96: Unsupported TPU device kind: cpu
#   v5e, bundles each: n >> 7 0.0, n // 128 7.4, lax.div(n, 128) 2.5, uint32(n) // 128 0.0, n & 127 0.0, n % 128 3.7, pl.cdiv(n, 128) 2.8, n // 96 8.9, n % 96 4.8
#   v6e, bundles each: n >> 7 0.0, n // 128 7.4, lax.div(n, 128) 2.5, uint32(n) // 128 0.0, n & 127 0.0, n % 128 3.7, pl.cdiv(n, 128) 2.8, n // 96 8.3, n % 96 4.4
#   v7x, bundles each: n >> 7 0.4, n // 128 8.0, lax.div(n, 128) 2.9, uint32(n) // 128 0.4, n & 127 0.4, n % 128 4.4, pl.cdiv(n, 128) 3.4, n // 96 9.0, n % 96 5.0
