"""vLLM 0.32.0 with tpu-inference 0.32.0 on a CPU, our kernels under the interpreter.

`make test-engines` has the environment; `judge.py` says what is compared. Every step that ran has
our kernels and no others, with the block sizes of a table that the server was told of.
"""

import pytest

pytest.importorskip("tpu_inference", reason="run by make test-engines")
pytest.importorskip("torch")
import judge
import transformers

OPTIONS = {"max_model_len": 64, "max_num_seqs": 8, "max_num_batched_tokens": 16,
           "max_logprobs": judge.WORDS}  # fmt: skip


def serve(model, impl, batches, tables, **options):
    """What the server generated, and which kernels it ran."""
    ours = {"chip": "v6e", "interpret": True, "fallback": False, "on_miss": "error"}
    asked = {
        "model": str(model), "impl": impl, "batches": batches, "num_tokens": judge.NUM_TOKENS,
        "options": {**OPTIONS, "additional_config": {"rpa_tune": ours | {"tables": tables}}}
        | options,
    }  # fmt: skip
    return judge.run_server("vllm_server.py", asked)


def check(model, batches, found):
    """Every answer is the judge's, and every step that ran is ours."""
    for prompts, answers in zip(batches, found["batches"], strict=True):
        for ids, answer in zip(prompts, answers, strict=True):
            tokens, logprobs = judge.answer(model, ids)
            assert answer["tokens"] == tokens
            judge.check_logprobs(answer["logprobs"], logprobs)
    judge.check_steps(found["steps"])
    assert found["refused"] == found["not_ours"] == {}


def test_llama_of_the_engine(tmp_path):
    """tpu-inference's own model does not ask for a backend: the function it calls is replaced."""
    model = judge.saved(tmp_path / "model", transformers.LlamaConfig(**judge.SIZES))
    batches = [judge.drawn(5, 20)]  # the longer one in two chunks
    rows = judge.tables(tmp_path / "tables", judge.PROBLEM)
    found = serve(tmp_path / "model", "flax_nnx", batches, rows)
    check(model, batches, found)
    assert found["flax_calls"] > 0


def test_gemma_of_vllm(tmp_path):
    """A layer with a window and one without, soft caps; a preemption; a prefix that is cached."""
    model = judge.saved(tmp_path / "model", judge.gemma())
    batches = judge.turns(model)
    # 11 pages beside the one that vLLM keeps free: three sequences of two kinds of layers need 14.
    rows = judge.tables(tmp_path / "tables", *judge.layers_of_gemma(judge.PROBLEM))
    found = serve(tmp_path / "model", "vllm", batches, rows, num_gpu_blocks_override=12)
    check(model, batches, found)
    assert found["preemptions"] > 0
    assert found["batches"][1][0]["cached_tokens"] > 0
    assert found["flax_calls"] == 0
