"""Tiny models, and what their servers must answer.

The judge is transformers' own model on PyTorch with its reference attention, float32 and the same
weights. Log-probabilities of all words are within `BOUND` of the judge's at every step. Greedy
tokens are the judge's, whose two best words are always further apart than twice that.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from table_rows import make_row

from rpa_kernels import load_family
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.writer import merge_into

BOUND = 1e-4  # of a log-probability: float32 sums in another order
WORDS, NUM_TOKENS = 256, 4
SIZES = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": WORDS,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW, SOFT_CAP, EMBEDDING = 20, 2.0, 0.05
# What vLLM compiles for: one bucket of tokens, so that each layer's kernels compile once.
PROBLEM = Problem(
    num_q_heads=4, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=16, max_num_seqs=8,
    pages_per_seq=4, num_pages=64, q_dtype="float32", kv_dtype="float32",
)  # fmt: skip
# Latents of 128 and rope rows of 64; tpu-inference packs 32 tokens of a cache into a row.
LATENT = replace(PROBLEM, num_kv_heads=1, rope_dim=64, kv_packing=32, page_size=32, pages_per_seq=2)
SMALL = {  # blocks that the interpreter compiles soon, and no heuristic chooses
    "decode": {"bkv_sz": 32, "bkv_csz": 32, "seqs_per_step": 1, "num_buffers": 2},
    "mixed": {"bkv_sz": 32, "bkv_csz": 32, "num_buffers": 2, "mxu_sums": 0},
    "prefill": {},
}


def drawn(*lengths):
    """Prompts of random words."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, WORDS, (n,), generator=draw).tolist() for n in lengths]


def gemma(*layers):
    """Layers with a window and without (or those that are named), both with capped logits."""
    layers = layers or ("sliding_attention", "full_attention")
    return transformers.Gemma2Config(
        **SIZES | {"num_hidden_layers": len(layers)}, layer_types=list(layers),
        sliding_window=WINDOW, attn_logit_softcapping=SOFT_CAP, query_pre_attn_scalar=128,
    )  # fmt: skip


def deepseek():
    """A layer with latents, and no experts."""
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    return transformers.DeepseekV3Config(
        **sizes | {"num_key_value_heads": 4, "num_hidden_layers": 1}, first_k_dense_replace=1,
        q_lora_rank=64, kv_lora_rank=LATENT.head_dim, qk_rope_head_dim=LATENT.rope_dim,
        qk_nope_head_dim=128, v_head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip


def layers_of_gemma(problem):
    """The problems of its layers."""
    capped = replace(problem, soft_cap=SOFT_CAP)
    return capped, replace(capped, sliding_window=WINDOW)


def saved(folder, config):
    """A random model of that kind, on disk as a server loads it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # or a model with tied embeddings repeats its last word
        model.get_input_embeddings().weight.mul_(EMBEDDING)
    model.to(torch.float32).eval().save_pretrained(folder)
    return model


def tables(folder, *problems):
    """Rows with small blocks for these problems."""
    target = load_chip("v6e").target
    rows = []
    for problem in problems:
        for slot, changes in SMALL.items():
            name = slot if problem.rope_dim is None else f"mla-{slot}"
            if name != "mla-prefill":
                config = load_family(name).default_config(problem, target)
                rows.append(make_row(name, problem, configs=[asdict(replace(config, **changes))]))
    merge_into(folder, rows)
    return str(folder)


def turns(model, *lengths):
    """Prompts together, and a next turn of a longest one: whole pages of it are cached by then."""
    first = drawn(*lengths)
    *_, longest = sorted(first, key=len)
    turn = [*longest, *answer(model, longest)[0][:2], *drawn(35)[0][32:]]
    return [first, [turn]]


def logprobs(model, ids):
    """Log-probabilities of all words behind each token: [tokens, words]."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()


def answer(model, ids):
    """Greedy tokens after a prompt, and the log-probabilities of all words at each."""
    ids, found = list(ids), []
    for _ in range(NUM_TOKENS):
        found.append(logprobs(model, ids)[-1])
        ids.append(int(found[-1].argmax()))
    second, best = np.sort(found)[:, -2:].T
    assert (best - second).min() > 2 * BOUND
    return ids[-NUM_TOKENS:], np.stack(found)


def check_logprobs(found, wanted):
    """Every word of every step is within the bound."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND)


def check_steps(steps, kind="rpa"):
    """Every step that ran had both of our kernels with the blocks of the table, and no others."""
    assert steps, "no step was seen"
    for names, _ in steps:
        assert {name.split("-")[0] for name in names} == {f"{kind}_decode", f"{kind}_mixed"}
        assert all("-bkv32_32-" in name for name in names), names


def run_server(script, asked):
    """What a server in a process of its own printed."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), json.dumps(asked)],
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    records = [line for line in run.stdout.splitlines() if line.startswith("RECORD ")]
    assert records, (run.stdout + run.stderr)[-9000:]
    return json.loads(records[-1].removeprefix("RECORD "))
