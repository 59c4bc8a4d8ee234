#!/usr/bin/env bash
# vllm-tpu 0.32.0 with tpu-inference 0.32.0: vLLM has default step sizes of its own for v5e, v5p and
# v6e, and no TPU gets them. It compares the device's name with "V6E", "V5E" and "V5P"; the platform
# plug-in calls its chips "TPU V6E" and so on. What applies instead is what is meant for small GPUs,
# the same on every chip: 8,192 new tokens in a step for `LLM`, 2,048 for `vllm serve`.
#
# Who is hurt: whoever reads the sizes for his chip in vLLM's source and tunes attention, plans
# compiles or reckons latency for them: on v5p the default server runs steps eight times as large.
# Pass `--max-num-batched-tokens`.
#
# Source: vllm/engine/arg_utils.py (`EngineArgs.get_batch_defaults`), run here from its source;
# tpu_inference/platforms/tpu_platform.py (`get_device_name`, `get_device_total_memory`), run with
# the chips of tpu-info in place of a TPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import ast, importlib.metadata, importlib.util, sys, types

path = importlib.metadata.distribution("tpu-info").locate_file("tpu_info/device.py")
spec = importlib.util.spec_from_file_location("device", path)
device = sys.modules["device"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(device)
sys.modules["tpu_info"] = types.SimpleNamespace(device=device)  # the rest of it asks for grpc


def function(package, path, name):
    """A function or method from its source, without importing its module."""
    file = importlib.metadata.distribution(package).locate_file(path)
    nodes = ast.walk(ast.parse(file.read_text()))
    (found,) = (n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == name)
    found.decorator_list, found.returns = [], None
    for argument in found.args.args:
        argument.annotation = None
    return compile(ast.Module([found], []), str(file), "exec")


def load(code, name, **names):
    exec(code, names)
    return names[name]


class UsageContext:
    LLM_CLASS, OPENAI_API_SERVER = "LLM", "vllm serve"


for name in ("vllm", "vllm.usage", "vllm.usage.usage_lib"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["vllm.usage.usage_lib"].UsageContext = UsageContext
packages = ("vllm-tpu", "tpu-inference", "tpu-info")
print(*(f"{name} {importlib.metadata.version(name)}" for name in packages))

PLATFORM = "tpu_inference/platforms/tpu_platform.py"
name_of = load(
    function("tpu-inference", PLATFORM, "get_device_name"), "get_device_name",
    vllm_envs=types.SimpleNamespace(VLLM_TPU_USING_PATHWAYS=False), logger=None,
)
memory_of = load(
    function("tpu-inference", PLATFORM, "get_device_total_memory"), "get_device_total_memory"
)
defaults = function("vllm-tpu", "vllm/engine/arg_utils.py", "get_batch_defaults")


class Tpu:
    """What vLLM asks of the platform plug-in."""

    get_device_name, get_device_total_memory = classmethod(name_of), classmethod(memory_of)
    is_tpu = staticmethod(lambda: True)
    is_cpu = staticmethod(lambda: False)


class Named(Tpu):
    get_device_name = classmethod(lambda cls: name_of(cls).removeprefix("TPU "))


def tokens(platform):
    found = load(
        defaults, "get_batch_defaults", current_platform=platform, GiB_bytes=1 << 30
    )(None, 1)
    return found[0]


for chip, meant in (("V5E", 1024), ("V5P", 512), ("V6E", 2048)):
    device.get_local_chips = lambda: (device.TpuChip[chip], 1)
    real, ought = tokens(Tpu), tokens(Named)
    print(f"{Tpu.get_device_name()}: {real}; were its name {Named.get_device_name()}: {ought}")
    assert real == {"LLM": 8192, "vllm serve": 2048}
    assert ought == {"LLM": meant, "vllm serve": meant // 2}
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install --no-deps tpu-inference==0.32.0 tpu-info==0.7.1
# Its wheel is for Python 3.12 alone; one file of it is read.
"${pip[@]}" download --no-deps --python-version 3.12 --only-binary=:all: \
  --platform manylinux_2_24_x86_64 --dest "$folder" vllm-tpu==0.32.0
site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$folder/venv/bin/python" -m zipfile -e "$folder"/vllm_tpu-*.whl "$site"
"$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen (Python 3.11):
#   vllm-tpu 0.32.0 tpu-inference 0.32.0 tpu-info 0.7.1
#   TPU V5E: {'LLM': 8192, 'vllm serve': 2048}; were its name V5E: {'LLM': 1024, 'vllm serve': 512}
#   TPU V5P: {'LLM': 8192, 'vllm serve': 2048}; were its name V5P: {'LLM': 512, 'vllm serve': 256}
#   TPU V6E: {'LLM': 8192, 'vllm serve': 2048}; were its name V6E: {'LLM': 2048, 'vllm serve': 1024}
