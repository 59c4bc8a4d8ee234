#!/usr/bin/env bash
# tpu-inference 0.32.0: `--attention-backend NAME` (`register_attention_backend`) does not reach the
# engine's own flax models. Their calls of `attention` name no backend, and then RPA v3 runs, whatever
# was asked for. The KV cache of the same server is laid out by the backend that was asked for.
#
# Who is hurt: whoever registers a backend and serves a model of models/jax, which is what `auto`
# chooses for Llama, Qwen 2 and 3, and others: the flag is accepted, logged and without effect; and
# if the backend has a cache layout of its own, RPA v3 reads that cache as if it were its own.
#
# The script reads the wheel's sources: every call of `attention` by a model, and every place that
# asks for the cache's shape.
# Source: models/jax/*.py, layers/vllm/backends/flash_attn.py, layers/common/attention_interface.py
# (`attention`: None runs RPA), runner/kv_cache_manager.py (`self.runner.attention_backend`).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import ast, importlib.metadata, pathlib

wheel = importlib.metadata.distribution("tpu-inference")
root = pathlib.Path(wheel.locate_file("tpu_inference"))


def calls(folder, name):
    """(file, whether the call names a backend) of every call of a function."""
    for path in sorted(root.joinpath(folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
                yield path.stem, any(k.arg == "attention_backend" for k in node.keywords)


flax, vllm = list(calls("models/jax", "attention")), list(calls("layers/vllm", "attention"))
cache = (root / "runner/kv_cache_manager.py").read_text().count("self.runner.attention_backend")
print(f"tpu-inference {wheel.version}")
print(f"flax models that call attention: {', '.join(sorted({name for name, _ in flax}))}")
print(f"of their {len(flax)} calls, {sum(named for _, named in flax)} name a backend")
print(f"of the {len(vllm)} calls of vLLM's layers, {sum(named for _, named in vllm)} name one")
print(f"the KV cache manager asks the chosen backend for shapes in {cache} places")
assert len(flax) > 4 and not any(named for _, named in flax), "a backend is passed now"
assert vllm and all(named for _, named in vllm) and cache
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps tpu-inference==0.32.0
"$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen:
#   tpu-inference 0.32.0
#   flax models that call attention: dflash, gemma4, gemma4_mtp, llama3, qwen2, qwen3, qwen3_dflash
#   of their 10 calls, 0 name a backend
#   of the 1 calls of vLLM's layers, 1 name one
#   the KV cache manager asks the chosen backend for shapes in 5 places
