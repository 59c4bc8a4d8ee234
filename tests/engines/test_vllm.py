"""vLLM 0.32.0 with tpu-inference 0.32.0 on a CPU, our kernels under the interpreter.

`make test-engines` has the environment. The judge is transformers' own model on PyTorch, with the
same weights: greedy tokens are equal, as its two best logits are always further apart than float32
sums in another order can bring them. The engine's own kernels do not run on a CPU, and nothing
falls back on them here, so that an answer is ours.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="run by make test-engines")
pytest.importorskip("tpu_inference", reason="run by make test-engines")
transformers = pytest.importorskip("transformers")

MARGIN = 1e-3  # of two logits; those of the models here are about 1 apart
SIZES = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def prompts():
    """A short prompt, one of two chunks, and then one that repeats its first pages."""
    draw = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(3, 512, (n,), generator=draw).tolist()  # noqa: E731
    long = ids(40)
    return [[ids(5), long], [long[:32] + ids(7)]]


def saved(folder, config):
    """A random model of that kind, on disk as a server loads it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.to(torch.float32).eval().save_pretrained(folder)
    return model


def expected(model, batches):
    """Greedy tokens, and the least margin on the way."""
    tokens, margins = [], []
    for batch in batches:
        tokens.append([])
        for ids in batch:
            ids = list(ids)
            for _ in range(6):
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0, -1]
                best = logits.topk(2)
                margins.append(float(best.values[0] - best.values[1]))
                ids.append(int(best.indices[0]))
            tokens[-1].append(ids[-6:])
    return tokens, min(margins)


def serve(folder, impl, batches, **options):
    """What the server generated, and which kernels it ran."""
    options = {"rpa_tune": {"chip": "v6e", "interpret": True, "fallback": False}, **options}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("vllm_server.py"), folder, impl,
         json.dumps(batches), json.dumps(options)],
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    records = [line for line in run.stdout.splitlines() if line.startswith("RECORD ")]
    assert records, (run.stdout + run.stderr)[-4000:]
    return json.loads(records[-1].removeprefix("RECORD "))


@pytest.mark.parametrize("impl", ["flax_nnx", "vllm"])
def test_llama(tmp_path, impl):
    batches = prompts()
    model = saved(tmp_path, transformers.LlamaConfig(**SIZES))
    tokens, margin = expected(model, batches)
    assert margin > MARGIN
    found = serve(tmp_path, impl, batches)
    assert found["tokens"] == tokens
    assert found["launched"] == ["decode", "mixed"]
    assert found["refused"] == found["not_ours"] == {}
    # Models of the engine's own do not ask for a backend: their function was replaced.
    assert (found["flax_calls"] > 0) == (impl == "flax_nnx")


def test_gemma_2_has_its_windows_and_its_soft_cap(tmp_path):
    """The engine's own layer passes no cap: ours has it from the layer's record."""
    batches = prompts()
    config = transformers.Gemma2Config(
        **SIZES, sliding_window=16, attn_logit_softcapping=3.0, final_logit_softcapping=None,
        query_pre_attn_scalar=128, pad_token_id=0,
    )  # fmt: skip
    model = saved(tmp_path, config)
    tokens, margin = expected(model, batches)
    assert margin > MARGIN
    found = serve(tmp_path, "vllm", batches)
    assert found["tokens"] == tokens
    assert found["caps"] == ["3.0"]
    assert found["windows"] == ["16", "None"]
