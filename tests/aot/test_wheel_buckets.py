"""The shapes and the page size of a server, held against the functions of the engines' wheels.

The modules around them need torch and vllm, so the functions are taken out of their files alone.
"""

import ast
import functools
import itertools
import logging
from dataclasses import asdict, replace
from types import SimpleNamespace as Record
from typing import Any

import pytest
from engine_wheels import sglang_jax_main

from rpa_tune.errors import UsageError
from rpa_tune.models.server import Server, own_page_size

pytestmark = pytest.mark.aot


@functools.cache
def parsed(path) -> ast.Module:
    return ast.parse(path.read_text())


def taken(path, names, needs) -> dict[str, Any]:
    """Functions, classes and constants of a file, by name, and nothing around them."""
    wanted = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            kept = [d for d in node.decorator_list if ast.unparse(d) == "staticmethod"]
            node.decorator_list = kept
            wanted.append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            wanted += [node] if ast.unparse(targets[0]) in names else []
    assert len(wanted) == len(names)
    module = ast.fix_missing_locations(ast.Module(body=wanted, type_ignores=[]))
    scope = {"Sequence": list, "logger": logging.getLogger("wheel"), **needs}
    exec(compile(module, str(path), "exec"), scope)
    return scope


def started(root, server, *, bucket_seqs=False) -> Record:
    """A runner of tpu-inference with the server's flags: its own `_init_inputs` was called."""
    import jax.numpy as jnp
    import numpy as np
    from jax._src import dtypes
    from jax._src.pallas.utils import next_power_of_2

    top = root / "tpu_inference"
    envs = Record(
        MIN_TOKEN_BUCKET=server.min_token_bucket,
        VLLM_TPU_BUCKET_PADDING_GAP=server.padding_gap,
        ATTN_BUCKETIZED_NUM_REQS=bucket_seqs,
        ATTN_CUSTOM_NUM_REQS_BUCKETS=[],
    )
    functions = ["get_padded_num_reqs_with_upper_limit", "get_req_paddings",
                 "get_attn_req_paddings", "get_token_paddings", "build_token_paddings",
                 "MIN_NUM_SEQS"]  # fmt: skip
    runner_utils = taken(top / "runner" / "utils.py", functions, {"envs": envs})
    common = taken(top / "utils.py", ["get_dtype_packing", "align_to"], {"dtypes": dtypes})
    needs = {
        "np": np, "envs": envs, "next_power_of_2": next_power_of_2, "jnp": jnp,
        "cdiv": lambda a, b: -(-a // b), "MIN_NUM_SEQS": runner_utils["MIN_NUM_SEQS"],
        "runner_utils": Record(**{name: runner_utils[name] for name in functions}),
        "common_utils": Record(get_dtype_packing=common["get_dtype_packing"],
                               align_to=common["align_to"], DeviceBuffer=lambda **_: None),
        "to_jax_dtype": jnp.dtype, "InputBatch": lambda **_: None,
    }  # fmt: skip
    method = taken(top / "runner" / "tpu_runner.py", ["_init_inputs"], needs)["_init_inputs"]
    model = Record(get_sliding_window=lambda: None, max_model_len=server.max_model_len,
                   get_vocab_size=lambda: 32)  # fmt: skip
    runner = Record(
        model_config=model,
        cache_config=Record(block_size=server.page_size, cache_dtype=server.kv_dtype),
        scheduler_config=Record(
            max_num_seqs=server.max_num_seqs, max_num_batched_tokens=server.max_num_batched_tokens
        ),
        dp_size=server.dp,
        dtype=jnp.bfloat16,
        vllm_config=Record(
            sharding_config=Record(prefill_cp_size=1),
            additional_config={"compilation_sizes": list(server.token_buckets)},
            parallel_config=Record(tensor_parallel_size=server.tp),
            speculative_config=None,
        ),
        speculative_config=None,
    )
    method(runner)
    return runner


FLAGS = [
    {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "dp": dp, "padding_gap": gap}
    for seqs, tokens in ((256, 8192), (64, 1000), (3, 17), (1, 1))
    for dp in (1, 4, 32)
    for gap in (0, 128, 512)
] + [
    {"max_num_seqs": 20, "max_num_batched_tokens": 16640},
    {"max_num_seqs": 17, "max_num_batched_tokens": 17, "padding_gap": 4},
    {"max_num_seqs": 20, "max_num_batched_tokens": 100, "min_token_bucket": 1},
    {"max_num_seqs": 20, "max_num_batched_tokens": 100, "min_token_bucket": 64, "dp": 2},
    {"max_num_seqs": 20, "max_num_batched_tokens": 100, "dp": 8, "kv_dtype": "float8_e4m3fn"},
    {"max_num_seqs": 20, "max_num_batched_tokens": 100, "dp": 8, "kv_dtype": "float32"},
    {"max_num_seqs": 20, "max_num_batched_tokens": 100, "token_buckets": (8, 24, 4096), "dp": 4},
    {"max_num_seqs": 2, "max_num_batched_tokens": 64, "dp": 2, "num_speculative_tokens": 3},
]  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_buckets_are_those_of_tpu_inference(tpu_inference_root, flags):
    server = Server(model="llama3-8b", chip="v6e", **flags)
    runner = started(tpu_inference_root, server)
    assert [s.num_tokens for s in server.shapes()] == runner.num_tokens_paddings_per_dp
    assert [b * server.dp for b in runner.num_tokens_paddings_per_dp] == runner.num_tokens_paddings
    # The per-sequence arrays are shards of arrays of `max_num_reqs`.
    assert {s.num_seqs * server.dp for s in server.shapes()} == {runner.max_num_reqs}
    assert server.pages_per_seq(server.page_size) == runner.max_num_blocks_per_req


def test_ranks_that_cannot_share_a_bucket_are_refused_where_the_engine_would_shard_it(
    tpu_inference_root,
):
    server = Server(model="llama3-8b", chip="v6e", max_num_seqs=8)
    flags = {"padding_gap": 8, "dp": 16}
    with pytest.raises(UsageError, match="dp=16 does not divide a bucket of 24 tokens"):
        replace(server, **flags)
    runner = started(tpu_inference_root, Record(**{**asdict(server), **flags}))
    assert 24 in runner.num_tokens_paddings


@pytest.mark.parametrize("most", [8, 9, 20, 64])
def test_bucketed_sequences_are_those_of_tpu_inference(tpu_inference_root, most):
    server = Server(model="llama3-8b", chip="v6e", max_num_seqs=most, bucket_seqs=True)
    runner = started(tpu_inference_root, server, bucket_seqs=True)
    assert sorted({s.num_seqs for s in server.shapes()}) == runner.attn_num_reqs_paddings_per_dp


def test_the_page_size_is_that_of_tpu_inference(tpu_inference_root):
    folder = tpu_inference_root / "tpu_inference/layers/vllm/backends"
    needs = {"cdiv": lambda a, b: -(-a // b), "VllmConfig": Any,
             "next_power_of_2": lambda n: 1 << (n - 1).bit_length()}  # fmt: skip
    names = ["get_page_size", "get_min_page_size"]
    backend = taken(folder / "flash_attn.py", names, needs)
    lengths = (1, 100, 1024, 1025, 2048, 4096, 8191, 8192, 8193, 32768, 131072, 1_000_000)
    for max_model_len, max_num_seqs in itertools.product(lengths, (1, 8, 64, 256, 1000, 131072)):
        config = Record(
            model_config=Record(max_model_len=max_model_len),
            scheduler_config=Record(max_num_seqs=max_num_seqs),
        )
        sizes = [backend[name].__func__(config) for name in names]
        found = own_page_size(max_model_len=max_model_len, max_num_seqs=max_num_seqs)
        assert found == max(sizes), (max_model_len, max_num_seqs)
    mla = taken(folder / "flash_attn_mla.py", ["get_page_size"], {"VllmConfig": Any})
    assert own_page_size(max_model_len=1, max_num_seqs=1, uses_mla=True) == (
        mla["get_page_size"].__func__(None)
    )


def sglang_buckets(top, runner, *, is_main):
    """Token and sequence buckets by the functions of one of its versions (None: not asked)."""
    defaults = taken(
        top / "utils/common_utils.py",
        ["PRECOMPILE_DEFAULT_TOKEN_PADDINGS", "PRECOMPILE_DEFAULT_BS_PADDINGS"], {},
    )  # fmt: skip
    args = taken(top / "server_args.py", ["max_prefill_tokens"], {})
    runner.max_prefill_tokens = args["max_prefill_tokens"]
    names = ["get_max_padded_size"] if is_main else ["normalize_token_paddings",
                                                     "get_max_padded_size"]  # fmt: skip
    worker = taken(top / "managers/tp_worker.py", names, defaults)
    runner.max_padded_batch_size, runner.max_padded_num_tokens = worker[names[-1]](runner)
    if not is_main:
        worker[names[0]](runner)
        return runner.precompile_token_paddings, None
    names = ["_compute_token_buckets", "_compute_bs_buckets"]
    manager = taken(top / "model_executor/compilation_manager.py", names, defaults)
    return (
        manager[names[0]](runner, runner.precompile_token_paddings),
        manager[names[1]](runner, None),
    )


@pytest.mark.parametrize("most_seqs", [1, 7, 64, 300, 5000])
@pytest.mark.parametrize("most_tokens", [128, 2048, 4096, 20480])
@pytest.mark.parametrize(("max_model_len", "given"), [(2048, None), (131072, (128, 1024))])
@pytest.mark.parametrize("is_main", [False, True], ids=["0.0.2", "main"])
def test_buckets_are_those_of_sglang_jax(
    sglang_jax_root, most_seqs, most_tokens, max_model_len, given, is_main
):
    top = (sglang_jax_main() if is_main else sglang_jax_root) / "sgl_jax/srt"
    held = taken(top / "layers/attention/flashattention_backend.py", ["get_max_running_reqests"],
                 {"cdiv": lambda a, b: -(-a // b)})  # fmt: skip
    most_held = held["get_max_running_reqests"].__func__(max_model_len, 128)
    runner = Record(
        chunked_prefill_size=most_tokens, max_running_requests=min(most_seqs, most_held),
        precompile_token_paddings=given and list(given), dp_size=1, tp_size=1, moe_backend="epmoe",
    )  # fmt: skip
    tokens, seqs = sglang_buckets(top, runner, is_main=is_main)
    server = Server(
        model="llama3-8b", chip="v6e", engine="sglang-jax", page_size=128, max_num_seqs=most_seqs,
        max_num_batched_tokens=most_tokens, max_model_len=max_model_len, token_buckets=given or (),
    )  # fmt: skip
    prompts = [s for s in server.shapes() if "mixed" in s.families]
    assert [s.num_tokens for s in prompts] == tokens
    assert {s.num_seqs for s in prompts} == {runner.max_padded_batch_size}
    decodes = [s for s in server.shapes() if s.families == ("decode",)]
    assert all(s.num_tokens == s.num_seqs for s in decodes)
    assert decodes[-1].num_seqs == runner.max_padded_batch_size
    assert seqs is None or [s.num_seqs for s in decodes] == seqs
