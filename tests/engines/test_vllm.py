"""vLLM 0.32.0 with tpu-inference 0.32.0 on a CPU, our kernels under the interpreter.

`make test-engines` has the environment; `judge.py` says what is compared. Every step that ran has
our kernels and no others, with the block sizes of a table that the server was told of.
"""

import judge
import transformers

OPTIONS = {
    "max_model_len": 64, "max_num_seqs": 8, "max_num_batched_tokens": 16, "block_size": 16,
    "num_gpu_blocks_override": 12, "max_logprobs": judge.WORDS,
}  # fmt: skip
OURS = {"chip": "v6e", "interpret": True, "fallback": False, "on_miss": "error"}


def serve(model, impl, batches, options, **rest):
    """What the server generated, and which kernels it ran.

    A cache has few pages (`num_gpu_blocks_override`): the engine would fill the memory that it
    takes for HBM, and the interpreter copies caches.
    """
    return judge.run_server("vllm_server.py", {
        "model": str(model), "impl": impl, "batches": batches, "num_tokens": judge.NUM_TOKENS,
        "options": OPTIONS | options, **rest,
    })  # fmt: skip


def told(**ours):
    """The backend's options, as the engine's option has them."""
    return {"additional_config": {"rpa_tune": OURS | ours}}


def check_answers(model, batches, found):
    """Every answer is the judge's."""
    for prompts, answers in zip(batches, found["batches"], strict=True):
        for ids, answer in zip(prompts, answers, strict=True):
            tokens, logprobs = judge.answer(model, ids)
            assert answer["tokens"] == tokens
            judge.check_logprobs(answer["logprobs"], logprobs)


def check(model, batches, found, kind="rpa"):
    """Every answer is the judge's, and every step that ran is ours."""
    check_answers(model, batches, found)
    judge.check_steps(found["steps"], kind)
    assert found["refused"] == found["not_ours"] == {}
    assert found["preemptions"] > 0
    assert found["batches"][1][0]["cached_tokens"] > 0


def test_llama_of_the_engine(tmp_path):
    """tpu-inference's own model does not ask for a backend: the function it calls is replaced."""
    model = judge.saved(tmp_path / "model", transformers.LlamaConfig(**judge.SIZES))
    batches = judge.turns(model, 30, 30, 14)
    rows = judge.tables(tmp_path / "tables", judge.PROBLEM)
    # Five pages beside the one that vLLM keeps free: the prompts fill them.
    options = {**told(tables=rows), "num_gpu_blocks_override": 6}
    found = serve(tmp_path / "model", "flax_nnx", batches, options)
    check(model, batches, found)
    assert found["flax_calls"] > 0


def test_gemma_of_vllm(tmp_path):
    """A layer with a window and one without, soft caps; a preemption; a prefix that is cached."""
    model = judge.saved(tmp_path / "model", judge.gemma())
    batches = judge.turns(model, 14, 30, 30)
    # 11 pages beside that one: three sequences of two kinds of layers need 14.
    rows = judge.tables(tmp_path / "tables", *judge.layers_of_gemma(judge.PROBLEM))
    found = serve(tmp_path / "model", "vllm", batches, told(tables=rows))
    check(model, batches, found)
    assert found["flax_calls"] == 0


def test_deepseek_of_vllm(tmp_path, monkeypatch):
    """Latents: the platform refuses any registered backend for them, so `install` is called."""
    monkeypatch.setenv("NEW_MODEL_DESIGN", "1")  # the engine wants both of these for latents
    sharding = {"sharding": {"sharding_strategy": {"enable_dp_attention": True}}}
    model = judge.saved(tmp_path / "model", judge.deepseek())
    batches = judge.turns(model, 30, 30, 14)
    rows = judge.tables(tmp_path / "tables", judge.LATENT)
    ours = {"chip": "v6e", "tables": rows, "on_miss": "error"}
    # Three pages beside that one: the prompts fill them.
    options = {"additional_config": sharding, "block_size": 32, "num_gpu_blocks_override": 4}
    found = serve(tmp_path / "model", "vllm", batches, options, latent=ours)
    check(model, batches, found, "mla")
    assert found["flax_calls"] > 0


def test_a_shadow_notices_a_wrong_answer(tmp_path):
    """The engine's kernel runs beside ours; the fourth answer is wrong, and it takes over."""
    model = judge.saved(tmp_path / "model", judge.gemma("sliding_attention"))
    batches = [judge.drawn(14, 30)]
    rows = judge.tables(tmp_path / "tables", judge.layers_of_gemma(judge.PROBLEM)[1])
    options = told(tables=rows, shadow_calls=100, fallback=True)
    found = serve(
        tmp_path / "model", "vllm", batches, options, host_kernel=True, wrong_after=3
    )  # fmt: skip
    check_answers(model, batches, found)
    ((key, why),) = found["refused"].items()
    assert f"window {judge.WINDOW}" in key
    assert why.startswith("outputs differ by ")
    assert found["compared"] == {key: 4}
    assert sum(line.startswith("the engine's own kernel serves") for line in found["lines"]) == 1
    assert any("plan: decode DecodeConfig" in line for line in found["lines"])
    # Both were there in every step, and from the first to the last the engine's was run.
    judge.check_steps(found["steps"])
    assert len(found["host_calls"]) == sum(count for _, count in found["steps"]) > 4


def test_what_does_not_compile_is_left_to_the_engine(tmp_path, monkeypatch):
    """Without the interpreter our kernels do not compile for a CPU: the server lives on."""
    for case in ("DECODE", "MIXED"):
        monkeypatch.setenv(f"RPA_V3_{case}_BLOCK_SIZES", "1,32,1,16")
    model = judge.saved(tmp_path / "model", judge.gemma())
    batches = [judge.drawn(14, 30)]
    options = told(interpret=False, fallback=True, on_miss="heuristic")
    found = serve(tmp_path / "model", "vllm", batches, options, host_kernel=True)
    check_answers(model, batches, found)
    assert len(found["refused"]) == 2  # keys: with a window and without
    assert all("interpret mode" in why for why in found["refused"].values())
    assert sum(line.startswith("the engine's own kernel serves") for line in found["lines"]) == 2
    assert {tuple(names) for names, _ in found["steps"]} == {()}
    assert len(found["host_calls"]) == 2 * sum(count for _, count in found["steps"]) > 0
    assert all(blocks == [1, 32, 1, 16] for _, blocks in found["host_calls"])
