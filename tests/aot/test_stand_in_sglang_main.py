"""The stand-in in the attention backend of sglang-jax's main branch, run by the interpreter.

As in `test_stand_in_sglang.py`; the backend, its `shard_map`, the kernel's module and the reference
are the main branch's own, at the commit that is named in `rpa_tune/interop/sglang_jax.py`.
"""

import inspect
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_wheels import SGLANG_JAX, sglang_jax_main
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from rpa_kernels import layout
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax

pytestmark = pytest.mark.aot
SRT = "sgl_jax.srt"
MAIN = sglang_jax.MAIN_BRANCH
STUBS = {
    "flax": {"nnx": types.SimpleNamespace(data=lambda value: value)},
    f"{SRT}.layers.attention.base_attn_backend": {"AttentionBackend": object},
    f"{SRT}.layers.radix_attention": {"RadixAttention": object},
    f"{SRT}.managers.schedule_batch": {"ModelWorkerBatch": object},
    f"{SRT}.mem_cache.memory_pool": {"KVCache": object},
    f"{SRT}.model_executor.forward_batch_info": {"ForwardBatch": object, "ForwardMode": object},
    f"{SRT}.speculative.eagle_info": {"EagleDraftInput": object},
    f"{SRT}.utils": {"cdiv": lambda a, b: -(-a // b), "__path__": []},
    f"{SRT}.utils.common_utils": {"next_power_of_2": layout.next_power_of_2},
    f"{SRT}.utils.jax_utils": {"device_array": None, "get_device_name": None},
    f"{SRT}.utils.profiling_utils": {"named_scope": lambda function: function},
}
HEADS, KV_HEADS, PAGE, NUM_PAGES, ROW = 4, 2, 16, 24, 4
STEPS = {  # as the engine labels them: (query lengths, contexts, tokens, distribution)
    "decode": ((1, 1, 1, 0), (33, 5, 64, 0), 4, (3, 3, 3)),
    "extend": ((7, 1, 20, 0), (7, 40, 50, 0), 32, (0, 3, 3)),
    "verify": ((4, 4, 4, 0), (33, 5, 64, 0), 16, (0, 0, 3)),
}
NUM_DRAFTS = 4


@pytest.fixture
def backend(monkeypatch):
    root = sglang_jax_main()
    for name, members in STUBS.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    yield SGLANG_JAX.load(root, sglang_jax.BACKEND)
    for name in [name for name in sys.modules if name.startswith("sgl_jax")]:
        if name not in before:
            del sys.modules[name]


def make_step(kind, head_dim):
    """Arrays of a step as `FlashAttention.get_forward_metadata` makes them, and the cache."""
    q_lens, kv_lens, num_tokens, distribution = STEPS[kind]
    rng = np.random.default_rng(1)
    pages = [-(-kv // PAGE) for kv in kv_lens]
    starts = np.cumsum([0, *pages])
    listed = rng.permutation(NUM_PAGES)[: starts[-1]]
    table = np.zeros((len(kv_lens), ROW), np.int32)
    for i, count in enumerate(pages):
        table[i, :count] = listed[starts[i] : starts[i] + count]
    metadata = {
        "seq_lens": np.array(kv_lens, np.int32),
        "page_indices": np.pad(listed, (0, table.size - len(listed))).astype(np.int32),
        "cu_q_lens": np.cumsum([0, *q_lens]).astype(np.int32),
        "cu_kv_lens": (PAGE * starts).astype(np.int32),
        "distribution": np.array(distribution, np.int32),
    }
    q, k, v = (
        jnp.asarray(rng.normal(size=(num_tokens, heads * head_dim)), jnp.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    cache = np.zeros((NUM_PAGES, PAGE, KV_HEADS, 2, 128))
    cache[..., :head_dim] = rng.normal(size=(*cache.shape[:4], head_dim))
    return metadata, table, q, k, v, jnp.asarray(cache, jnp.bfloat16)


def run_layer(backend, head_dim, metadata, q, k, v, cache, **layer_fields):
    """What the engine does in a layer."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    layer = backend.FlashAttention(HEADS, KV_HEADS, head_dim, page_size=PAGE, mesh=mesh)
    for name, array in metadata.items():
        setattr(layer.forward_metadata, name, jnp.asarray(array))
    fields = {
        "layer_id": 0, "head_dim": head_dim, "scaling": head_dim**-0.5, "logit_cap": None,
        "sliding_window_size": None, "xai_temperature_len": -1, "softmax_dtype": None,
    }  # fmt: skip
    radix = types.SimpleNamespace(**(fields | layer_fields))
    mode = types.SimpleNamespace(is_target_verify=lambda: "custom_mask" in metadata)
    drafts = types.SimpleNamespace(draft_token_num=NUM_DRAFTS)
    batch = types.SimpleNamespace(forward_mode=mode, spec_info=drafts)

    def step(q, k, v, cache):
        pool = types.SimpleNamespace(get_fused_kv_buffer=lambda _: cache)
        return layer(q, k, v, radix, batch, pool)

    with jax.set_mesh(mesh):
        spread = jax.NamedSharding(mesh, PartitionSpec())
        return jax.jit(step)(*jax.device_put((q, k, v, cache), spread))


def expected(kind, head_dim, metadata, table, q, k, v, cache, **features):
    """The branch's own reference, over a cache into which new keys and values were put by hand."""
    new = np.array(cache.astype(jnp.float32))
    k, v = (np.asarray(x, np.float32).reshape(-1, KV_HEADS, head_dim) for x in (k, v))
    for i, q_len in enumerate(STEPS[kind][0]):
        for j in range(q_len):
            token = metadata["cu_q_lens"][i] + j
            place = metadata["seq_lens"][i] - q_len + j
            page, slot = table[i, place // PAGE], place % PAGE
            new[page, slot, :, 0, :head_dim] = k[token]
            new[page, slot, :, 1, :head_dim] = v[token]
    pages = jnp.asarray(new[..., :head_dim])
    out = sys.modules[MAIN.module].ref_ragged_paged_attention(
        q.astype(jnp.float32).reshape(-1, HEADS, head_dim), pages[:, :, :, 0], pages[:, :, :, 1],
        jnp.asarray(metadata["seq_lens"]), jnp.asarray(table), jnp.asarray(metadata["cu_q_lens"]),
        jnp.asarray(metadata["distribution"][2:]), sm_scale=head_dim**-0.5, **features,
    )  # fmt: skip
    return np.asarray(out).reshape(out.shape[0], -1), new


@pytest.mark.parametrize(
    ("kind", "head_dim", "window"),
    [pytest.param("extend", 128, 10, marks=pytest.mark.slow),
     pytest.param("decode", 128, None, marks=pytest.mark.slow), ("decode", 64, None)],
)  # fmt: skip
def test_the_engines_layer_gives_the_references_answer(backend, kind, head_dim, window):
    given = make_step(kind, head_dim)
    metadata, _, *arrays = given
    want, want_cache = expected(kind, head_dim, *given, sliding_window=window)
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"), interpret=pltpu.InterpretParams())
    try:
        assert stand_in.places == [
            f"{MAIN.module}.{sglang_jax.FUNCTION}", f"{sglang_jax.BACKEND}.{MAIN.bound}",
        ]  # fmt: skip
        with stand_in.expect_calls():
            out, cache = run_layer(backend, head_dim, metadata, *arrays, sliding_window_size=window)
    finally:
        stand_in.uninstall()
    np.testing.assert_allclose(np.asarray(out, np.float32)[: len(want)], want, rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(np.asarray(cache, np.float32), want_cache)


@pytest.mark.slow
def test_a_tree_of_drafts_gives_the_references_answer(backend):
    metadata, table, *arrays = make_step("verify", 128)
    rng, masks = np.random.default_rng(2), []
    for q_len, kv_len in zip(*STEPS["verify"][:2], strict=True):
        mask = np.ones((q_len, kv_len), np.int32)
        # The first draft is seen by all; of the others each sees some before it, and itself.
        mask[:, kv_len - q_len :] = np.tril(rng.integers(0, 2, (q_len, q_len)), -1)
        mask[:, kv_len - q_len : kv_len - q_len + 1] = 1
        mask[range(q_len), range(kv_len - q_len, kv_len)] = 1
        masks.append(mask)
    given = metadata, table, *arrays
    flat = np.concatenate([mask.reshape(-1) for mask in masks])
    want, want_cache = expected(
        "verify", 128, *given, causal=False, custom_mask=jnp.asarray(flat)
    )  # fmt: skip
    plain, _ = expected("verify", 128, *given)
    assert np.abs(want - plain).max() > 0.1  # the mask is not the causal one
    # As `get_eagle_forward_metadata` lays it out: rows of whole pages, then what nobody reads.
    aligned = [np.pad(mask, ((0, 0), (0, -mask.shape[1] % PAGE))).reshape(-1) for mask in masks]
    metadata["custom_mask"] = np.concatenate([*aligned, np.zeros(16)]).astype(np.int32)
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"), interpret=pltpu.InterpretParams())
    try:
        with stand_in.expect_calls():
            out, cache = run_layer(backend, 128, metadata, *arrays)
    finally:
        stand_in.uninstall()
    np.testing.assert_allclose(np.asarray(out, np.float32)[: len(want)], want, rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(np.asarray(cache, np.float32), want_cache)


def test_the_real_signature_is_the_one_that_is_known(backend):
    assert sglang_jax.loaded_function() is MAIN
    parameters = inspect.signature(backend.ragged_paged_attention_v3).parameters
    assert tuple(parameters)[: len(MAIN.leading)] == MAIN.leading


def test_what_a_layer_asks_and_ours_has_not_is_named_in_the_real_layer(backend):
    metadata, _, *arrays = make_step("decode", 128)
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"))
    try:
        with pytest.raises(UsageError, match="xai_temperature_len: not served"):
            run_layer(backend, 128, metadata, *arrays, xai_temperature_len=1024)
        # One token of a sequence has no tree of drafts.
        with pytest.raises(UsageError, match="custom_mask: not served"):
            run_layer(backend, 128, metadata | {"custom_mask": np.ones(64, np.int32)}, *arrays)
    finally:
        stand_in.uninstall()
