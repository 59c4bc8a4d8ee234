#!/usr/bin/env bash
# tpu-inference 0.32.0: vLLM's models with latents (DeepSeek, Kimi) make no sense with the default KV
# dtype. `MLAAttention` keeps None for `--kv-cache-dtype auto`, and hands it to `quantize_tensor` for
# two of its weights. numpy takes None for float64, whose largest value is infinite in float32: every
# scale becomes 0, weights above 1 become infinite and the others huge. Scaled, each is NaN or 0,
# whatever it was; one warning speaks of an overflow in a cast.
#
# Who is hurt: whoever serves such a model with the default. A tiny DeepSeek in the whole engine on a
# CPU gave token 0 for every greedy token; the attention kernel gets the blame. By the same code a
# quantised cache (`--kv-cache-dtype fp8`) passes a real dtype.
#
# Source: layers/vllm/custom_ops/mla_attention.py (`__init__`, `process_weights_after_loading`), which
# asks for vLLM and is only read here, and layers/common/quantization/__init__.py, which is run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import ast, importlib.metadata, importlib.util

import jax
import jax.numpy as jnp

wheel = importlib.metadata.distribution("tpu-inference")
path = wheel.locate_file("tpu_inference/layers/common/quantization/__init__.py")
spec = importlib.util.spec_from_file_location("quantization", path)
quantization = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quantization)

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("tpu-inference", "jax")))
layer = wheel.locate_file("tpu_inference/layers/vllm/custom_ops/mla_attention.py").read_text()
FIELD = "self.kv_cache_quantized_dtype"
statements = {ast.unparse(node) for node in ast.walk(ast.parse(layer)) if isinstance(node, ast.stmt)}
calls = [
    ast.unparse(node) for node in ast.walk(ast.parse(layer))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "quantize_tensor"
]
print(f"{FIELD} = None:", f"{FIELD} = None" in statements)
print(*(f"calls {call}" for call in calls), sep="\n")
assert f"{FIELD} = None" in statements and len(calls) == 2
assert all(ast.unparse(ast.parse(call).body[0].value.args[0]) == FIELD for call in calls)

weights = jax.random.normal(jax.random.key(0), (4, 8, 16), jnp.float32)
for dtype in (None, jnp.float8_e4m3fn):
    q, scale = quantization.quantize_tensor(dtype, weights, axis=1)
    back = q.astype(jnp.float32) * scale[:, None]
    counts = {
        "weights": weights.size, "infinite": int(jnp.isinf(q.astype(jnp.float32)).sum()),
        "scales of 0": int((scale == 0).sum()), "NaN once scaled": int(jnp.isnan(back).sum()),
        "0 once scaled": int((back == 0).sum()),
    }
    print("quantize_tensor", None if dtype is None else jnp.dtype(dtype).name, counts)
    if dtype is None:
        lost = counts["NaN once scaled"] + counts["0 once scaled"]
        assert lost == weights.size and counts["NaN once scaled"] > 0, "weights survive now"
    else:
        assert counts["NaN once scaled"] == 0 and counts["0 once scaled"] < weights.size // 10
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
  tpu-inference==0.32.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen (Python 3.11):
#   tpu-inference 0.32.0 jax 0.10.2
#   self.kv_cache_quantized_dtype = None: True
#   calls quantize_tensor(self.kv_cache_quantized_dtype, jax_view(self.W_UK_T), axis=1)
#   calls quantize_tensor(self.kv_cache_quantized_dtype, jax_view(self.W_UV), axis=1)
#   quantize_tensor None {'weights': 512, 'infinite': 153, 'scales of 0': 64, 'NaN once scaled': 153, '0 once scaled': 359}
#   quantize_tensor float8_e4m3fn {'weights': 512, 'infinite': 0, 'scales of 0': 0, 'NaN once scaled': 0, '0 once scaled': 0}
