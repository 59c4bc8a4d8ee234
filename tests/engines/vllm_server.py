"""Starts vLLM with tpu-inference on a CPU, generates, and prints what came out and what ran.

Run by `test_vllm.py` in the environment of `make test-engines`, a process for each engine:

    python vllm_server.py JSON

where JSON has `model` (a folder), `impl` (whose models), `batches` (of prompts, by token ids; a
later batch finds the prefixes of those before), `num_tokens` to generate, `options` of the engine,
and if wanted: `latent` (the backend's options: the model has latents, so nobody may ask for the
backend, and the stand-in is installed by hand), `host_kernel` (the engine's own kernel runs too),
`wrong_after` (calls of our attention after which it gives wrong answers).

Four things of the engine need a TPU and are replaced: `make_optimized_mesh` sorts devices by
their coordinates, which CPU devices have not; `hbm_usage_bytes` asks how much HBM there is; its
steps name options of the TPU compiler; and vLLM's layers give the host's copy of a weight back,
which here is the weight. A fault of the engine is mended: see `keep_weights_of_latents`. All else
is the wheels' own: vLLM's scheduler and KV-cache manager, tpu-inference's platform, runner, models.
"""

import itertools
import json
import logging
import os
import sys
from typing import Any

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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


def go_wrong(after: int) -> None:
    """From so many calls on our attention gives wrong answers, as no kernel of ours should."""
    import jax
    import numpy as np
    from jax.experimental import io_callback

    from rpa_tune.interop import engine_call

    right, calls = engine_call.ragged_paged_attention, itertools.count()

    def wrong(*arrays: Any, **features: Any) -> tuple[Any, ...]:
        out, *rest = right(*arrays, **features)
        one = jax.ShapeDtypeStruct((), "float32")
        factor = io_callback(lambda: np.float32(1 + (next(calls) >= after)), one)
        return (out * factor, *rest)

    engine_call.ragged_paged_attention = wrong


def logged_lines() -> list[str]:
    """Filled with what the parts beside the kernels log from now on."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("rpa_tune.interop").addHandler(handler)
    return lines


def keep_weights_of_latents() -> None:
    """`quantize_tensor` leaves what nobody wants quantised as it is.

    With a cache of the model's dtype, `process_weights_after_loading` of
    `layers/vllm/custom_ops/mla_attention.py` asks for the dtype None, which is taken for float64:
    weights become infinite and their scales 0 (tpu-inference 0.32.0).
    """
    import jax.numpy as jnp
    from tpu_inference.layers.common import quantization

    from rpa_tune.interop.stand_in import StandIn

    original = quantization.quantize_tensor

    def mended(dtype: Any, tensor: Any, axis: int = -1, *rest: Any) -> Any:
        if dtype is None:
            return tensor, jnp.ones_like(tensor, jnp.float32).max(axis)
        return original(dtype, tensor, axis, *rest)

    StandIn().replace(original, mended, "tpu_inference")


def install_for_latents(options: dict[str, Any]) -> Any:
    """What a user does whose model has latents; returns the stand-in."""
    keep_weights_of_latents()
    import tpu_inference.layers.common.attention_interface  # noqa: F401
    from jax.experimental.pallas import tpu as pltpu

    import rpa_tune
    from rpa_tune.interop import intercept

    dispatcher = rpa_tune.load_dispatcher(**options)
    return intercept.install(dispatcher, interpret=pltpu.InterpretParams())


def main() -> None:
    """One engine, all prompts, greedy."""
    asked = json.loads(sys.argv[1])
    prepare(asked["impl"])
    if asked.get("host_kernel"):
        from host_kernel import CALLS, use_host_kernel

        use_host_kernel()
    if "wrong_after" in asked:
        go_wrong(asked["wrong_after"])
    from vllm import LLM, SamplingParams

    preempted, lines = counted_preemptions(), logged_lines()
    by_hand = install_for_latents(asked["latent"]) if "latent" in asked else None
    door = {} if by_hand else {"attention_backend": "rpa_tune"}
    llm = LLM(
        model=asked["model"], skip_tokenizer_init=True, dtype="float32",
        enable_prefix_caching=True, **door, **asked["options"],
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

    stand_in = by_hand or backend.stand_in()
    guards = [served.guard for served in backend._made.values()]
    record = {
        "batches": batches,
        "steps": Step.record(),
        "preemptions": len(preempted),
        "flax_calls": stand_in.calls,
        "compared": guards[0].compared if guards else {},
        "refused": guards[0].refused if guards else {},
        "not_ours": stand_in.not_ours,
        "lines": lines,
        "host_calls": CALLS if asked.get("host_kernel") else [],
    }
    print("RECORD " + json.dumps(record), flush=True)
    os._exit(0)  # vLLM's clean-up of a model at exit asks for a method that flax models lack


if __name__ == "__main__":
    main()
