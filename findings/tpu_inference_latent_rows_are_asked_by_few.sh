#!/usr/bin/env bash
# tpu-inference 0.32.0: the tuned block sizes for models with latents (DeepSeek, Mistral) are looked up
# by an exact key that holds `--max-num-seqs` and the pages of `--max-model-len`. The table has rows for 8, 16, 64,
# 77 and 160 sequences and for 3 or 9 pages of 1,024 tokens, so nearly every server gets the defaults, with a warning
# for each shape. The 9 rows for DeepSeek's 128 heads and 160 sequences have the packing 4 of their dtype, while
# the engine's cache is packed by `MLA_KV_PACKING_SIZE`, 32 unless it is set: a default server asks for none of them.
# The limit of VMEM that stands in each row (60 MiB) is not passed on to the kernel at all, which takes the chip's.
#
# Who is hurt: whoever takes these rows for tuned points of a model. Below, 15 of the 16 keys of a server
# with 64 heads and 64 sequences are found at a context of 9,216 tokens, and none at 8,192 or 10,240. A miss
# runs mixed steps with blocks of 16 queries and no split instead of 64 and 16, and decode in batches of 4 instead of 8.
#
# Source: kernels/mla/v2/tuned_params.py, whose look-up runs here with a stand-in for the logger; the keys are those of
# `mla_attention` in layers/common/attention_interface.py; `get_kv_cache_shape` in kernels/mla/v2/kernel.py, envs.py
# and `max_num_blocks_per_req` in runner/tpu_runner.py say what a server has in them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import ast, collections, importlib.metadata, importlib.util, logging, pathlib, re, sys, types

wheel = importlib.metadata.distribution("tpu-inference")
root = pathlib.Path(wheel.locate_file("tpu_inference"))
logging.disable(logging.WARNING)
sys.modules["tpu_inference"] = types.ModuleType("tpu_inference")
sys.modules["tpu_inference.logger"] = types.SimpleNamespace(init_logger=logging.getLogger)
spec = importlib.util.spec_from_file_location("tuned_params", root / "kernels/mla/v2/tuned_params.py")
tuned = importlib.util.module_from_spec(spec)
sys.modules["tuned_params"] = tuned
spec.loader.exec_module(tuned)

PAGE = int(re.search(r"return (\d+)", (root / "layers/vllm/backends/flash_attn_mla.py").read_text()).group(1))
PACKING = int(re.search(r'"MLA_KV_PACKING_SIZE", "(\d+)"', (root / "envs.py").read_text()).group(1))
BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
rows = tuned.tuned_params_mapping


def found(case, heads, max_num_seqs, max_model_len):
    """Which step sizes of a server with a float8 cache find a row."""
    keys = [
        tuned.TuningKey(case, tokens, heads, 512, 64, page_size_per_kv_packing=PAGE // PACKING,
                        kv_packing=PACKING, max_num_seqs=max_num_seqs, pages_per_seq=-(-max_model_len // PAGE))
        for tokens in BUCKETS
    ]
    return sum(key in rows for key in keys)


print(f"tpu-inference {wheel.version}: {len(rows)} rows; pages of {PAGE} tokens, packed by {PACKING}")
layouts = collections.Counter(
    (k.page_size_per_kv_packing, k.kv_packing, k.actual_num_q_heads, k.max_num_seqs, k.pages_per_seq) for k in rows)
print("rows by (page / packing, packing, heads, sequences, pages):", dict(layouts))
hits = {}
for heads, seqs, lens in ((64, 64, (8192, 9216, 10240, 32768)), (64, 256, (9216,)), (128, 160, (9216,))):
    for length in lens:
        hits[heads, seqs, length] = [found(case, heads, seqs, length) for case in ("batched_decode", "mixed")]
        decode, mixed = hits[heads, seqs, length]
        print(f"{heads:3} heads, {seqs:3} sequences, context {length:6,}: "
              f"{decode} of {len(BUCKETS)} decode steps and {mixed} of {len(BUCKETS)} mixed ones find a row")
miss = tuned.get_tuned_params(tuned.TuningKey("mixed", 512, 64, 512, 64))
row = next(v for k, v in rows.items() if k.case == "mixed" and k.max_num_tokens == 512)
for name, params in (("a miss", miss), ("a row ", row)):
    print(f"mixed, {name}: blocks of {params.num_queries_per_block} queries, q_split {params.q_split}")
(call,) = [
    node for node in ast.walk(ast.parse((root / "layers/common/attention_interface.py").read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "mla_ragged_paged_attention"
]
limits = {params.vmem_limit_bytes for params in rows.values()}
passed = any(keyword.arg == "vmem_limit_bytes" for keyword in call.keywords)
print(f"limits of VMEM in the rows: {limits}; passed to the kernel: {passed}")
assert sum(hits[64, 64, 9216]) == 15
assert all(hits[key] == [0, 0] for key in hits if key != (64, 64, 9216)), "more servers find rows now"
assert not passed, "the limit is passed now"
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps tpu-inference==0.32.0
"$folder/venv/bin/python" "$folder/show.py"
echo "as recorded"
# Output seen (Python 3.11):
#   tpu-inference 0.32.0: 59 rows; pages of 1024 tokens, packed by 32
#   rows by (page / packing, packing, heads, sequences, pages): {(32, 32, 32, 16, 3): 4, (256, 4, 128, 160, 9): 9, (32, 32, 128, 8, 3): 11, (32, 32, 64, 64, 9): 24, (576, 1024, 64, 77, 9): 11}
#    64 heads,  64 sequences, context  8,192: 0 of 8 decode steps and 0 of 8 mixed ones find a row
#    64 heads,  64 sequences, context  9,216: 8 of 8 decode steps and 7 of 8 mixed ones find a row
#    64 heads,  64 sequences, context 10,240: 0 of 8 decode steps and 0 of 8 mixed ones find a row
#    64 heads,  64 sequences, context 32,768: 0 of 8 decode steps and 0 of 8 mixed ones find a row
#    64 heads, 256 sequences, context  9,216: 0 of 8 decode steps and 0 of 8 mixed ones find a row
#   128 heads, 160 sequences, context  9,216: 0 of 8 decode steps and 0 of 8 mixed ones find a row
#   mixed, a miss: blocks of 16 queries, q_split 1
#   mixed, a row : blocks of 64 queries, q_split 16
#   limits of VMEM in the rows: {62914560}; passed to the kernel: False
