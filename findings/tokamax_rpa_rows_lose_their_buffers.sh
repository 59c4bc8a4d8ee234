#!/usr/bin/env bash
# tokamax 0.0.17 reads its shipped v7x rows for ragged paged attention and drops how many buffers
# they were tuned with: the file says `num_buffers`, the config `n_buffer`, and unknown fields are
# ignored, so every row gets the default, 3.
#
# Who is hurt: whoever serves with these rows, or takes them as tuned points: 37 of 47 were timed with
# 2 buffers and run with 3 (half as much VMEM again for KV blocks, another schedule). And whoever
# writes rows for it: a misspelt field is no error.
#
# Needs Python 3.12 or later, as tokamax with these tables does: PYTHON=python3.12 bash ...
# Source: data/autotuning/tpu7x/pallas_tpu_batched_rpa.json and Config in
# _src/ops/batched_rpa/pallas_mosaic_tpu.py of the wheel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import collections, importlib.metadata, importlib.resources, json

from tokamax._src.autotuning.cache import AutotuningCache
from tokamax._src.ops.batched_rpa.pallas_mosaic_tpu import PallasTpuBatchedRpa

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("tokamax", "jax", "pydantic")))
file = "data/autotuning/tpu7x/pallas_tpu_batched_rpa.json"
rows = json.loads(importlib.resources.files("tokamax").joinpath(file).read_text()).values()
written = collections.Counter(json.loads(config)["num_buffers"] for row in rows for config in row)
cache = AutotuningCache(PallasTpuBatchedRpa())["TPU7x"]
read = collections.Counter(config.n_buffer for row in cache.values() for config in row)
print(f"num_buffers in the file: {dict(written)}")
print(f"n_buffer as loaded:      {dict(read)}")
assert written == {2: 37, 3: 10}, "the file has changed"
assert read == {3: 47}, "the field is read now"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  tokamax==0.0.17 jax==0.11.2 jaxlib==0.11.2 pydantic==2.14.4
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen:
#   tokamax 0.0.17 jax 0.11.2 pydantic 2.14.4
#   num_buffers in the file: {2: 37, 3: 10}
#   n_buffer as loaded:      {3: 47}
