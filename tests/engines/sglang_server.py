"""Runs the scheduler and the model runner of sglang-jax's main branch on a CPU, our kernels inside.

Run by `test_sglang_jax.py` in the environment of `make test-engines`, in a process of its own:

    python sglang_server.py JSON

where JSON has `source` (a folder with `sgl_jax`), `model` (a folder), `batches` (of prompts, by
token ids; a later batch finds the prefixes of those before), `num_tokens` to generate, `tables`,
`options` of the engine, and if wanted `drafts` (see `sglang_trees.py`). Prints every row of logits
with the tokens that it follows from.

Left out are HTTP, tokenizer and detokenizer, which are other processes. Two things are replaced:

* On a CPU the runner takes its attention of plain XLA (`_get_attention_backend` in
  `model_executor/model_runner.py`): it is told that this is a TPU while it chooses.
* Its Gemma reads `rope_theta` of transformers 4.57 from the config; version 5 of this environment
  has that in `rope_parameters`.
"""

import json
import os
import sys
from typing import Any


class Queue:
    """The other processes: hands requests over, and keeps what comes back."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.sent: list[Any] = []

    def recv_requests(self) -> list[Any]:
        given, self.waiting = self.waiting, []
        return given

    def send_pyobj(self, result: Any) -> None:
        self.sent.append(result)

    def wait_for_new_requests(self, timeout_s: float) -> None:
        raise AssertionError("the scheduler is idle before all requests are done")


def prepare() -> None:
    """What has to be before a scheduler is made."""
    import transformers
    from sgl_jax.srt.model_executor.model_runner import ModelRunner

    original = ModelRunner._get_attention_backend

    def as_on_a_tpu(runner: Any) -> Any:
        args = runner.server_args
        before, args.device = args.device, "tpu"
        try:
            return original(runner)
        finally:
            args.device = before

    ModelRunner._get_attention_backend = as_on_a_tpu
    transformers.Gemma2Config.rope_theta = 10000.0  # its default


def made_scheduler(asked: dict[str, Any], queue: Queue) -> Any:
    """The engine's scheduler, which makes a worker, which makes the model runner."""
    from sgl_jax.srt.managers.scheduler import Scheduler
    from sgl_jax.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=asked["model"], skip_tokenizer_init=True, dtype="float32", page_size=16,
        disable_overlap_schedule=True, disable_precompile=True, watchdog_timeout=3600,
        **asked["options"],
    )  # fmt: skip
    return Scheduler(args, communication_backend=queue)


def seen_logits(scheduler: Any) -> list[Any]:
    """Filled with (tokens, the logits after them) of every row that the model runner computes."""
    import jax

    seen: list[Any] = []
    worker, run = scheduler.tp_worker, scheduler.tp_worker.forward_batch_generation

    def forward(batch: Any, *args: Any, **kwargs: Any) -> Any:
        results = run(batch, *args, **kwargs)
        logits = jax.device_get(results[0].next_token_logits)
        for place, req in enumerate(scheduler.cur_batch.reqs_info[0].reqs):
            tokens = [*req.origin_input_ids, *req.output_ids][: int(batch.seq_lens[place])]
            seen.append([tokens, logits[place].tolist()])
        return results

    worker.forward_batch_generation = forward
    return seen


def counted_retractions() -> list[str]:
    """Filled with every request that is retracted from now on."""
    from sgl_jax.srt.managers.schedule_batch import ScheduleBatch

    original, seen = ScheduleBatch.retract_decode, []

    def retract(batch: Any, *args: Any) -> Any:
        results = original(batch, *args)
        seen.extend(req.rid for req in results[0])
        return results

    ScheduleBatch.retract_decode = retract
    return seen


def greedy(num_tokens: int) -> Any:
    """What its tokenizer's process makes of a request for so many tokens."""
    from sgl_jax.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(max_new_tokens=num_tokens, temperature=0, ignore_eos=True)
    params.normalize(None)
    return params


def step(scheduler: Any, queue: Queue) -> None:
    """One round of the engine's `event_loop_normal`."""
    scheduler.process_input_requests(scheduler.select_dp_for_request(queue.recv_requests()))
    batch = scheduler.cur_batch = scheduler.get_next_batch_to_run()
    assert batch, "the scheduler has nothing to run before all requests are done"
    scheduler.process_batch_result(batch, scheduler.run_batch(batch))
    scheduler.last_batch = batch


def main() -> None:
    """All prompts, greedy."""
    asked = json.loads(sys.argv[1])
    os.environ |= {
        "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "4",
        # Compiling an interpreted kernel takes longer than running it: optimise little.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }  # fmt: skip
    sys.path.insert(0, asked["source"])
    from jax.experimental.pallas import tpu as pltpu
    from sgl_jax.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang_trees import verified_trees
    from steps import Step, noting_steps

    import rpa_tune
    from rpa_tune.interop import sglang_jax

    noting_steps("jitted_run_model")  # model_executor/model_runner.py
    prepare()
    dispatcher = rpa_tune.load_dispatcher("v6e", asked["tables"], on_miss="error")
    stand_in = sglang_jax.install(dispatcher, interpret=pltpu.InterpretParams())
    queue = Queue()
    scheduler = made_scheduler(asked, queue)
    trees = verified_trees(scheduler, asked["drafts"]) if "drafts" in asked else []
    seen, retracted = seen_logits(scheduler), counted_retractions()
    requests = {}
    add = scheduler._add_request_to_queue

    def added(req: Any, *args: Any) -> None:
        requests[req.rid] = req
        add(req, *args)

    scheduler._add_request_to_queue = added
    with stand_in.expect_calls():
        for place, batch in enumerate(asked["batches"]):
            names = [f"{place}.{i}" for i in range(len(batch))]
            queue.waiting = [
                TokenizedGenerateReqInput(
                    rid=name, text="", input_ids=ids, sampling_params=greedy(asked["num_tokens"])
                )
                for name, ids in zip(names, batch, strict=True)
            ]
            while not all(name in requests and requests[name].finished() for name in names):
                step(scheduler, queue)
    record = {
        "answers": {name: [*map(int, req.output_ids)] for name, req in requests.items()},
        "cached_tokens": {name: req.cached_tokens for name, req in requests.items()},
        "logits": seen,
        "trees": trees,
        "retracted": retracted,
        "steps": Step.record(),
        "backend": type(scheduler.tp_worker.model_runner.attn_backend).__name__,
        "places": stand_in.places,
    }
    print("RECORD " + json.dumps(record), flush=True)
    os._exit(0)  # its watchdog is a thread


if __name__ == "__main__":
    main()
