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
TOPK, NUM_DRAFTS = 2, 8
# Of the draft model's answers at each step, for each of the two drafts that the step before kept.
# All ten but the least likely three are verified: children of the root, of both of these, and of
# the two that were kept of those, which are that of the second and the first of the first.
ODDS = [[[0.55, 0.45]], [[0.5, 0.4], [0.9, 0.05]], [[0.6, 0.3], [0.7, 0.2]]]


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


def drafted(answers, path):
    """The draft model's tokens at each step for a sequence.

    Args:
      answers: The judge's tokens, the root first.
      path: Which draft of a step is the judge's: (row, column), or None for no more of them.
    """
    wrong = iter(word for word in range(3, judge.WORDS) if word not in answers)
    steps = [[[next(wrong) for _ in odds] for odds in rows] for rows in ODDS]
    for tokens, right, place in zip(steps, answers[1:], path, strict=True):
        if place is not None:
            tokens[place[0]][place[1]] = right
    return steps


def test_a_tree_of_drafts(tmp_path):
    """Drafts of four levels and three leaves are verified: masks, logits, and what is accepted."""
    layers = ["full_attention"] * 2  # trees in a layer with a window are refused
    model = judge.saved(tmp_path / "model", judge.gemma(*layers))
    prompts = judge.drawn(20, 36, 7)  # whose last pages have room for the drafts
    capped, _ = judge.layers_of_gemma(replace(judge.PROBLEM, max_num_seqs=4))
    tree = replace(
        capped, max_num_tokens=4 * NUM_DRAFTS, decode_query_size=NUM_DRAFTS, has_tree_mask=True,
        pages_per_seq=16,  # the least that the engine makes of its list for verification
    )  # fmt: skip
    rows = judge.tables(tmp_path / "tables", capped, replace(capped, max_num_tokens=4), tree)
    greedy = [judge.answer(model, ids)[0] for ids in prompts]
    # All of the first's are drafted right, in its first branch; of the second's two, in its second
    # branch; of the last's none.
    paths = [[(0, 0), (0, 0), (1, 0)], [(0, 1), (1, 0), None], [None] * 3]
    each = [drafted(*given) for given in zip(greedy, paths, strict=True)]
    each.append(each[0])  # of the place that stays empty
    found = judge.run_server("sglang_server.py", {
        "source": str(sglang_jax_main()), "model": str(tmp_path / "model"), "batches": [prompts],
        "num_tokens": judge.NUM_TOKENS, "tables": rows,
        "options": {**OPTIONS, "max_total_tokens": 192},
        "drafts": {
            "topk": TOPK, "num_tokens": NUM_DRAFTS,
            "answers": [
                (odds * len(each), [row for steps in each for row in steps[i]])
                for i, odds in enumerate(ODDS)
            ],
        },
    })  # fmt: skip
    (seen,) = found["trees"]
    check_masks_and_logits(model, prompts, seen)
    for place, name in enumerate(seen["names"]):
        i = int(name.partition(".")[2])
        count = 1 + sum(step is not None for step in paths[i])
        assert seen["num_accepted"][place] == count
        after = judge.logprobs(model, [*prompts[i], *greedy[i][:count]])[-1].argmax()
        assert seen["accepted"][place][:count] == [*greedy[i][1:count], after]
        assert found["answers"][name] == greedy[i]  # and decoding goes on as if there were no tree
    judge.check_steps(found["steps"])
    trees = [count for (decode, _), count in found["steps"] if decode.endswith(f"-t{NUM_DRAFTS}")]
    assert trees == [1]


def check_masks_and_logits(model, prompts, seen):
    """Every node of every tree has the logits of its own path, which is what the mask says."""
    start = 0
    for place, name in enumerate(seen["names"]):
        prompt, tokens = prompts[int(name.partition(".")[2])], seen["tokens"][place]
        width = len(prompt) + NUM_DRAFTS
        mask = np.array(seen["mask"][start : start + NUM_DRAFTS * width]).reshape(-1, width)
        start += mask.size
        assert mask[:, : len(prompt)].all()
        sees = mask[:, len(prompt) :] == 1
        assert (sees == np.tril(sees)).all()
        assert (sees.sum(axis=0) == 1).sum() == 3  # leaves
        assert sorted(sees.sum(axis=1)) == [1, 2, 2, 3, 3, 3, 4, 4]
        for node, path in enumerate(sees):
            ids = [*prompt, *(tokens[j] for j in np.flatnonzero(path))]
            assert seen["positions"][place][node] == len(ids) - 1
            logits = np.array(seen["logits"][place][node], np.float32)
            wanted = judge.logprobs(model, ids)[-1]
            judge.check_logprobs(logits - np.logaddexp.reduce(logits), wanted)
            if len(ids) < len(prompt) + node + 1:  # after all drafts before it, it is far off
                as_chain = judge.logprobs(model, [*prompt, *tokens[: node + 1]])[-1]
                assert np.abs(as_chain - wanted).max() > 100 * judge.BOUND
