"""The scheduler and model runner of sglang-jax's main branch on a CPU, our kernels inside.

Its sources are fetched at the commit that is known; `make test-engines` has the environment.
"""

from dataclasses import replace

import judge
import numpy as np
from engine_wheels import sglang_jax_main

from rpa_tune.interop import sglang_jax

OPTIONS = {
    "context_length": 64, "max_running_requests": 4, "chunked_prefill_size": 16,
    "max_prefill_tokens": 16, "precompile_token_paddings": [16], "precompile_bs_paddings": [4],
    "disable_hybrid_swa_memory": True, "mem_fraction_static": 0.1,
}  # fmt: skip


def test_gemma_of_the_engine(tmp_path):
    """A layer with a window and one without, soft caps; a retraction; a prefix that is cached."""
    model = judge.saved(tmp_path / "model", judge.gemma())
    batches = judge.turns(model, 14, 30, 30)
    extend = replace(judge.PROBLEM, max_num_seqs=4)
    decode = replace(extend, max_num_tokens=4)
    rows = judge.tables(
        tmp_path / "tables", *judge.layers_of_gemma(extend), *judge.layers_of_gemma(decode)
    )
    found = judge.run_server("sglang_server.py", {
        "source": str(sglang_jax_main()), "model": str(tmp_path / "model"), "batches": batches,
        "num_tokens": judge.NUM_TOKENS, "tables": rows,
        # Six pages: three sequences need more while they are decoded.
        "options": {**OPTIONS, "max_total_tokens": 96},
    })  # fmt: skip
    for place, prompts in enumerate(batches):
        for i, ids in enumerate(prompts):
            assert found["answers"][f"{place}.{i}"] == judge.answer(model, ids)[0]
    assert len(found["logits"]) > len(found["answers"]) * judge.NUM_TOKENS  # and chunks of prompts
    for tokens, logits in found["logits"]:
        wanted = judge.logprobs(model, tokens)[-1]
        logits = np.array(logits, np.float32)
        judge.check_logprobs(logits - np.logaddexp.reduce(logits), wanted)
    judge.check_steps(found["steps"])
    assert found["backend"] == "FlashAttention"
    assert f"{sglang_jax.BACKEND}.{sglang_jax.MAIN_BRANCH.bound}" in found["places"]
    assert found["retracted"]
    assert found["cached_tokens"]["1.0"] > 0
