"""Starts vLLM with tpu-inference on a CPU, generates, and prints what came out and what ran.

Run by `test_vllm.py` in the environment of `make test-engines`, a process for each engine:

    python vllm_server.py JSON

where JSON has `model` (a folder), `impl` (whose models), `batches` (of prompts, by token ids; a
later batch finds the prefixes of those before), `num_tokens` to generate, and `options` of the
engine.

Four things of the engine need a TPU and are replaced: `make_optimized_mesh` sorts devices by
their coordinates, which CPU devices have not; `hbm_usage_bytes` asks how much HBM there is; its
steps name options of the TPU compiler; and vLLM's layers give the host's copy of a weight back,
which here is the weight. All else is the wheels' own: vLLM's scheduler and KV-cache manager,
tpu-inference's platform, runner and models.
"""

import json
import os
import sys
from typing import Any

from steps import Step, noting_steps

# What the runner compiles a step of: tpu-inference's models (`models/common/model_loader.py`), and
# vLLM's (`models/vllm/vllm_model_wrapper.py`).
STEPS = ("run_model_impl", "step_fun_impl")


def prepare(impl: str) -> None:
    """What has to be before the engine is imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TPU_SKIP_MDS_QUERY": "1",
        "SKIP_JAX_PRECOMPILE": "1", "MODEL_IMPL_TYPE": impl, "PJRT_NPROC": "4",
        # Compiling an interpreted kernel takes longer than running it: optimise little.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }  # fmt: skip
    import jax
    import torch

    torch.UntypedStorage.resize_ = lambda storage, size: storage
    noting_steps(*STEPS)
    from tpu_inference import utils
    from tpu_inference.runner import tpu_runner

    utils.hbm_usage_bytes = lambda devices: [(0, 1 << 34)] * len(devices)

    def mesh(shape: Any, axes: Any, devices: Any = None) -> Any:
        kinds = (jax.sharding.AxisType.Auto,) * len(axes)
        return jax.make_mesh(shape, axes, devices=devices, axis_types=kinds)

    tpu_runner.make_optimized_mesh = mesh


def counted_preemptions() -> list[str]:
    """Filled with the request of every preemption of the scheduler from now on."""
    from vllm.v1.core.sched.scheduler import Scheduler

    original, seen = Scheduler._preempt_request, []

    def preempt(scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(request.request_id)
        return original(scheduler, request, *args, **kwargs)

    Scheduler._preempt_request = preempt
    return seen


def main() -> None:
    """One engine, all prompts, greedy."""
    asked = json.loads(sys.argv[1])
    prepare(asked["impl"])
    from vllm import LLM, SamplingParams

    preempted = counted_preemptions()
    llm = LLM(
        model=asked["model"], skip_tokenizer_init=True, dtype="float32", block_size=16,
        enable_prefix_caching=True, attention_backend="rpa_tune", **asked["options"],
    )  # fmt: skip
    sampling = SamplingParams(
        max_tokens=asked["num_tokens"], temperature=0, detokenize=False, ignore_eos=True,
        logprobs=asked["options"]["max_logprobs"],
    )  # fmt: skip
    batches = []
    for batch in asked["batches"]:
        outs = llm.generate([{"prompt_token_ids": ids} for ids in batch], sampling, use_tqdm=False)
        batches.append([
            {
                "tokens": list(out.outputs[0].token_ids),
                "cached_tokens": out.num_cached_tokens,
                "logprobs": [
                    [one.logprob for _, one in sorted(step.items())]
                    for step in out.outputs[0].logprobs
                ],
            }
            for out in outs
        ])  # fmt: skip
    from rpa_tune.interop import tpu_inference_backend as backend

    (served,) = backend._made.values()
    record = {
        "batches": batches,
        "steps": Step.record(),
        "preemptions": len(preempted),
        "flax_calls": backend.stand_in().calls,
        "refused": served.guard.refused,
        "not_ours": backend.stand_in().not_ours,
    }
    print("RECORD " + json.dumps(record), flush=True)
    os._exit(0)  # vLLM's clean-up of a model at exit asks for a method that flax models lack


if __name__ == "__main__":
    main()
