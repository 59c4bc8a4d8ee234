"""Starts vLLM with tpu-inference on a CPU, generates, and prints what came out and what ran.

Run by `test_vllm.py` in the environment of `make test-engines`, a process for each question:

    python vllm_server.py MODEL_FOLDER IMPL PROMPTS_JSON OPTIONS_JSON

Three things of the engine need a TPU and are replaced: `make_optimized_mesh` sorts devices by
their coordinates, which CPU devices have not; `hbm_usage_bytes` asks how much HBM there is; and its
steps name options of the TPU compiler. All else is the wheels' own: vLLM's scheduler and KV-cache
manager, tpu-inference's platform, runner and models.
"""

import json
import os
import sys


def prepare() -> None:
    """What has to be before the engine is imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TPU_SKIP_MDS_QUERY": "1",
        "SKIP_JAX_PRECOMPILE": "1", "MODEL_IMPL_TYPE": sys.argv[2],
    }  # fmt: skip
    import jax

    jit = jax.jit
    jax.jit = lambda *args, compiler_options=None, **rest: jit(*args, **rest)
    from tpu_inference import utils
    from tpu_inference.runner import tpu_runner

    utils.hbm_usage_bytes = lambda devices: [(0, 1 << 34)] * len(devices)

    def mesh(shape, axes, devices=None):
        kinds = (jax.sharding.AxisType.Auto,) * len(axes)
        return jax.make_mesh(shape, axes, devices=devices, axis_types=kinds)

    tpu_runner.make_optimized_mesh = mesh


def main() -> None:
    """One engine, all prompts, greedy."""
    prepare()
    from vllm import LLM, SamplingParams

    folder, _, prompts, options = sys.argv[1:]
    given = json.loads(options)
    extra = {"rpa_tune": given.pop("rpa_tune")}
    llm = LLM(
        model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=128, max_num_seqs=8,
        max_num_batched_tokens=32, block_size=16, enable_prefix_caching=True,
        num_gpu_blocks_override=64,
        attention_backend="rpa_tune", additional_config=extra, **given,
    )  # fmt: skip
    sampling = SamplingParams(max_tokens=6, temperature=0, detokenize=False, ignore_eos=True)
    tokens = []
    for batch in json.loads(prompts):  # a later batch finds the prefixes of those before
        outs = llm.generate([{"prompt_token_ids": ids} for ids in batch], sampling, use_tqdm=False)
        tokens.append([list(out.outputs[0].token_ids) for out in outs])
    from rpa_tune.interop import tpu_inference_backend

    served = next(iter(tpu_inference_backend._made.values()))
    menus = served.dispatcher._menus
    record = {
        "tokens": tokens,
        "flax_calls": tpu_inference_backend.stand_in().calls,
        "launched": sorted(
            {f for menu in menus.values() for p in menu._plans.values() for f in p.families}
        ),
        "windows": sorted({str(p.sliding_window) for p in menus}),
        "caps": sorted({str(p.soft_cap) for p in menus}),
        "refused": served.guard.refused,
        "not_ours": tpu_inference_backend.stand_in().not_ours,
    }
    print("RECORD " + json.dumps(record), flush=True)
    os._exit(0)  # vLLM's clean-up of a model at exit asks for a method that flax models lack


if __name__ == "__main__":
    main()
