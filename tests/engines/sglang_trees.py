"""Verification of trees of drafts by sglang-jax's main branch, without its draft worker.

That worker drafts no tree at the commit that is known: `padding_for_decode` of
`srt/speculative/eagle_draft_worker.py` fails before its model is called. So its model's answers are
given, and all else is the engine's own: how drafts are selected, the kernel that makes the tree
and its mask, `BaseSpecWorker.verify` with the metadata of the attention backend, the step of the
model runner, and the kernel that accepts drafts. Both of these kernels run under the interpreter.
"""

import copy
from types import SimpleNamespace
from typing import Any


def verified_trees(scheduler: Any, drafts: dict[str, Any]) -> list[Any]:
    """Filled with what verification answered, before the first decode step of all requests.

    The step itself runs afterwards: what was written for drafts is behind its context.

    Args:
      scheduler: With a worker that runs its steps.
      drafts: `topk`; `num_tokens` that a sequence verifies; and `answers`, for each step of the
        draft model its probabilities and its tokens, a row for each sequence of a full batch and
        each of its drafts.
    """
    seen: list[Any] = []
    worker, run = scheduler.tp_worker, scheduler.tp_worker.forward_batch_generation
    num_seqs = scheduler.max_running_requests - 1  # and one place stays empty

    def forward(batch: Any, *args: Any, **kwargs: Any) -> Any:
        if batch.forward_mode.is_decode() and batch.real_bs == num_seqs and not seen:
            seen.append(_verified(scheduler, run, copy.copy(batch), drafts))
        return run(batch, *args, **kwargs)

    worker.forward_batch_generation = forward
    return seen


def _verified(scheduler: Any, run: Any, batch: Any, drafts: dict[str, Any]) -> dict[str, Any]:
    """One verification of a batch that is about to decode; `run` runs a step."""
    import jax
    import numpy as np
    from jax.experimental.pallas import tpu as pltpu
    from sgl_jax.srt.speculative.base_worker import BaseSpecWorker

    worker, logits = scheduler.tp_worker, []
    args = copy.copy(scheduler.server_args)
    args.speculative_algorithm, args.speculative_eagle_topk = "EAGLE", drafts["topk"]
    args.speculative_num_steps = len(drafts["answers"])
    args.speculative_num_draft_tokens = drafts["num_tokens"]
    runner = SimpleNamespace(rngs=worker.model_runner.rngs)
    engine = BaseSpecWorker(args, worker, SimpleNamespace(draft_model_runner=runner))
    batch.seq_lens, before = batch.seq_lens.copy(), worker.forward_batch_generation

    def forward(*args: Any, **kwargs: Any) -> Any:
        results = run(*args, **kwargs)
        logits.append(jax.device_get(results[0].next_token_logits))
        return results

    with pltpu.force_tpu_interpret_mode():
        tree = _drafted(args, worker, batch, drafts)
        batch.spec_info_padded = tree
        worker.forward_batch_generation = forward
        result = engine.verify(batch, None)
        worker.forward_batch_generation = before
    each = args.speculative_num_draft_tokens
    names = [req.rid for info in scheduler.cur_batch.reqs_info for req in info.reqs]
    kept = result.next_draft_input.verified_id.reshape(len(batch.seq_lens), -1)
    return {
        "names": names,
        "tokens": np.asarray(tree.draft_token).reshape(-1, each).tolist(),
        "positions": np.asarray(tree.positions).reshape(-1, each).tolist(),
        "mask": np.asarray(tree.custom_mask).tolist(),
        "logits": logits[0].reshape(-1, each, logits[0].shape[-1]).tolist(),
        "num_accepted": np.asarray(result.accept_lens).tolist(),
        "accepted": kept.tolist(),
    }


def _drafted(args: Any, worker: Any, batch: Any, drafts: dict[str, Any]) -> Any:
    """What `EagleDraftWorker.draft` makes of these answers."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from sgl_jax.srt.speculative import eagle_draft_worker as eagle
    from sgl_jax.srt.speculative.eagle_info import EagleVerifyInput
    from sgl_jax.srt.speculative.eagle_util import build_tree_kernel_efficient

    steps, topk, each = (
        args.speculative_num_steps, args.speculative_eagle_topk, args.speculative_num_draft_tokens,
    )  # fmt: skip
    cached, mesh = batch.seq_lens - 1, worker.mesh
    num_seqs, later = len(cached), (steps - 1) * topk
    whole = NamedSharding(mesh, PartitionSpec())
    put = lambda x, dtype: jax.device_put(np.asarray(x, dtype), whole)  # noqa: E731
    lists = (
        jnp.empty((num_seqs, 1 + later, topk)),
        jnp.empty((num_seqs, topk + later * topk), jnp.int32),
        jnp.empty((num_seqs, topk + 1 + later)),
    )
    scores, hidden = None, put(np.zeros((num_seqs, 1)), "float32")
    for i, (probabilities, tokens) in enumerate(drafts["answers"]):
        given = put(probabilities, "float32"), put(tokens, "int32")
        _, hidden, scores, found = eagle.select_top_k_tokens(i, *given, hidden, scores, topk)
        lists = eagle.update_eagle_lists(i, *lists, found, topk)
    mask, positions, index, next_token, next_sibling, draft_tokens = build_tree_kernel_efficient(
        batch.input_ids, *lists, cached, np.sum(cached), topk, each, args.context_length, num_seqs,
        steps, mesh,
    )  # fmt: skip
    return EagleVerifyInput(
        draft_token=draft_tokens, custom_mask=mask, positions=positions, retrive_index=index,
        retrive_next_token=next_token, retrive_next_sibling=next_sibling, spec_steps=steps,
        draft_token_num=each,
    )  # fmt: skip
