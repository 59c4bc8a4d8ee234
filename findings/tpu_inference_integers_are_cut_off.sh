#!/usr/bin/env bash
# tpu-inference 0.32.0 quantises to integers by cutting off, not by rounding: `quantize_tensor` and
# `quantize_kv` clip and then call `astype`, which for int8 and int4 drops the fraction towards zero
# (for float8 it rounds). The error is twice that of rounding, and it has a sign: everything shrinks.
#
# Who is hurt: whoever fills an int8 KV cache with `quantize_kv` (keys and values become 1 % shorter,
# with a scale of the largest value; a looser scale makes it worse), and whoever sets
# `REQUANTIZE_WEIGHT_DTYPE` or `MOE_REQUANTIZE_WEIGHT_DTYPE` to int8 or int4: int4 weights lose 22 %
# of their length. A kernel that is compared with unquantised attention gets the blame. Round
# before you call them: `jnp.round(x / scale)`, with a scale of 1 in the call.
#
# Source: layers/common/quantization/__init__.py of the wheel, loaded by itself: the package's
# `__init__` asks for vLLM, this file for nothing but jax.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import importlib.metadata, importlib.util, sys

import jax
import jax.numpy as jnp

path = importlib.metadata.distribution("tpu-inference").locate_file(
    "tpu_inference/layers/common/quantization/__init__.py"
)
spec = importlib.util.spec_from_file_location("quantization", path)
quantization = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quantization)

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("tpu-inference", "jax")))
x = jax.random.normal(jax.random.key(0), (256, 4096), jnp.float32)


def seen(name, quantised, scale):
    """Relative error (root mean square) and length of what comes back, beside rounding."""
    is_integer = jnp.issubdtype(quantised.dtype, jnp.integer)
    exact = jnp.round(x / scale) if is_integer else (x / scale).astype(quantised.dtype)
    found = []
    for values in (quantised, exact):
        back = values.astype(jnp.float32) * scale
        error = float(jnp.sqrt(jnp.mean((back - x) ** 2) / jnp.mean(x**2)))
        found.append((round(error, 4), round(float(jnp.sum(x * back) / jnp.sum(x * x)), 3)))
    print(f"{name:28} error {found[0][0]}, length {found[0][1]}; rounded {found[1][0]}, {found[1][1]}")
    return found


lengths = {}
for dtype in (jnp.int4, jnp.int8, jnp.float8_e4m3fn):
    quantised, scale = quantization.quantize_tensor(dtype, x, -1)
    name = jnp.dtype(dtype).name
    lengths[name] = seen(f"quantize_tensor {name}", quantised, scale[:, None])
scale = float(jnp.abs(x).max()) / 127
keys, _ = quantization.quantize_kv(jnp.int8, x, x, scale, scale)
lengths["kv"] = seen("quantize_kv int8", keys, scale)
assert lengths["int4"][0][1] < 0.8 and lengths["int4"][1][1] > 0.999
for name in ("int8", "kv"):
    assert lengths[name][0][0] > 1.9 * lengths[name][1][0] and lengths[name][0][1] < 0.99
assert lengths["float8_e4m3fn"][0] == lengths["float8_e4m3fn"][1]
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
  tpu-inference==0.32.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen:
#   tpu-inference 0.32.0 jax 0.10.2
#   quantize_tensor int4         error 0.2969, length 0.783; rounded 0.1573, 1.0
#   quantize_tensor int8         error 0.0173, length 0.988; rounded 0.0087, 1.0
#   quantize_tensor float8_e4m3fn error 0.0265, length 0.999; rounded 0.0265, 0.999
#   quantize_kv int8             error 0.0211, length 0.985; rounded 0.0106, 1.0
