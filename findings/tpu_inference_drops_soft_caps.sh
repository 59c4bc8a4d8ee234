#!/usr/bin/env bash
# tpu-inference 0.32.0: the attention layer of vLLM's models keeps `logits_soft_cap` and never passes
# it on, so logits are not capped, and nothing says so.
#
# Who is hurt: whoever serves a model with soft caps through vLLM's model code on TPU
# (MODEL_IMPL_TYPE=vllm; also where `auto` chooses it, or there is no flax model): Gemma 2 caps
# attention logits at 50, Grok 1 at 30. Answers differ from the model's, most for long prompts.
#
# The wheel's own `PallasAttentionBackendImpl.forward` runs; what it imports of torch, torchax and
# vllm, which takes no part, is a stand-in, and so is the function that it calls, which prints its
# arguments. That function has a parameter `soft_cap`, which is None here.
# Source: layers/vllm/backends/flash_attn.py of the wheel, `forward` and `_jax_attn_func`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import importlib, importlib.metadata, inspect, sys, types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


class Whatever(type):
    def __getattr__(cls, name): return Anything()


class Anything(metaclass=Whatever):
    def __init__(self, *args, **kwargs): pass
    def __init_subclass__(cls, **kwargs): pass
    def __class_getitem__(cls, item): return cls
    def __call__(self, function=None, *args, **kwargs): return function
    def __getattr__(self, name): return Anything()


class Stand(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        known = {"AttentionType": Kinds, "register_backend": lambda *a: lambda c: c}
        return known.get(name, Anything if name[0].isupper() else Anything())


class Kinds: DECODER, ENCODER_ONLY = "decoder", "encoder_only"


class Finder(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        rest = name.startswith("tpu_inference.") and not WANTED.startswith(name)
        if name.split(".")[0] in ("torch", "torchax", "vllm") or rest:
            return ModuleSpec(name, self, is_package=True)
    def create_module(self, spec): return Stand(spec.name)
    def exec_module(self, module): pass


WANTED = "tpu_inference.layers.vllm.backends.flash_attn"
root = importlib.metadata.distribution("tpu-inference").locate_file("tpu_inference")
sys.meta_path.insert(0, Finder())
for depth in range(1, 5):  # its packages' own code is not needed
    name = ".".join(WANTED.split(".")[:depth])
    package = types.ModuleType(name)
    package.__path__ = [str(root.joinpath(*WANTED.split(".")[1:depth]))]
    sys.modules[name] = package
module = importlib.import_module(WANTED)

seen = {}
real = inspect.signature(module._jax_attn_func)
def attend(*args, **kwargs):
    seen.update(real.bind(*args, **kwargs).arguments)
    return "cache", "output"
module._jax_attn_func = attend
context = types.SimpleNamespace(
    mesh=None, shared_attn_metadata=None, layer_name_to_kvcache_index={"layer": 0}, kv_caches=[None])
module.get_vllm_model_wrapper_context = lambda: context
module.jax_view = module.torch_view = lambda x: x
layer = module.PallasAttentionBackendImpl(
    8, 128, 0.0884, 4, None, 4096, "auto", logits_soft_cap=50.0, attn_type=Kinds.DECODER)
layer.forward(types.SimpleNamespace(layer_name="layer"), "q", "k", "v",
              types.SimpleNamespace(numel=lambda: 0), None)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("tpu-inference", "jax")))
print(f"the layer was made with logits_soft_cap={layer.logits_soft_cap}")
print(f"its call has sliding_window={seen['sliding_window']}, soft_cap={seen.get('soft_cap')}")
assert layer.logits_soft_cap == 50.0 and "soft_cap" in real.parameters
assert seen.get("soft_cap") is None, "the cap is passed now"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.11.2 jaxlib==0.11.2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps tpu-inference==0.32.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen:
#   tpu-inference 0.32.0 jax 0.11.2
#   the layer was made with logits_soft_cap=50.0
#   its call has sliding_window=4096, soft_cap=None
