"""The stand-in in the real attention backend of sglang-jax 0.0.2, run by the interpreter.

The backend and the kernel's module are loaded out of the wheel. What the backend imports of flax
and of the serving engine is replaced by empty stand-ins; the layer under test, its `shard_map` and
the wheel's own reference are what PyPI ships.
"""

import inspect
import runpy
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_wheels import SGLANG_JAX
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax

pytestmark = pytest.mark.aot
SRT = "sgl_jax.srt"
KERNEL = sglang_jax.RELEASED.module
STUBS = {
    "flax": {"nnx": types.SimpleNamespace(data=lambda value: value)},
    f"{SRT}.layers.attention.base_attn_backend": {"AttentionBackend": object},
    f"{SRT}.layers.radix_attention": {"RadixAttention": object},
    f"{SRT}.managers.schedule_batch": {"ModelWorkerBatch": object},
    f"{SRT}.mem_cache.memory_pool": {"KVCache": object},
    f"{SRT}.model_executor.forward_batch_info": {"ForwardBatch": object, "ForwardMode": object},
    f"{SRT}.utils": {"cdiv": lambda a, b: -(-a // b), "__path__": []},
    f"{SRT}.utils.jax_utils": {"device_array": None, "get_device_name": None},
}
HEADS, KV_HEADS, HEAD_DIM, PAGE, NUM_PAGES = 4, 2, 128, 16, 24


@pytest.fixture
def backend(sglang_jax_root, monkeypatch):
    """The wheel's backend, freshly imported."""
    for name, members in STUBS.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    before = {name for name in sys.modules if name.startswith("sgl_jax")}
    yield SGLANG_JAX.load(sglang_jax_root, sglang_jax.BACKEND)
    for name in [name for name in sys.modules if name.startswith("sgl_jax")]:
        if name not in before:
            del sys.modules[name]


@pytest.fixture
def stand_in(backend):
    installed = sglang_jax.install(load_dispatcher(chip="v6e"), interpret=pltpu.InterpretParams())
    yield installed
    installed.uninstall()


def make_step(q_lens, kv_lens, *, num_tokens, distribution):
    """Arrays of a step as `FlashAttention.get_forward_metadata` makes them, and the cache."""
    rng = np.random.default_rng(1)
    max_pages = 4
    pages = [-(-kv // PAGE) for kv in kv_lens]
    listed = rng.permutation(NUM_PAGES)[: sum(pages)]
    page_indices = np.zeros(len(kv_lens) * max_pages, np.int32)
    page_indices[: len(listed)] = listed
    metadata = {
        "seq_lens": np.array(kv_lens, np.int32),
        "page_indices": page_indices,
        "cu_q_lens": np.cumsum([0, *q_lens]).astype(np.int32),
        "cu_kv_lens": (PAGE * np.cumsum([0, *pages])).astype(np.int32),
        "distribution": np.array(distribution, np.int32),
    }
    table = np.zeros((len(kv_lens), max_pages), np.int32)
    for i, (start, count) in enumerate(zip(np.cumsum([0, *pages]), pages, strict=False)):
        table[i, :count] = listed[start : start + count]
    q, k, v = (
        jnp.asarray(rng.normal(size=(num_tokens, heads * HEAD_DIM)), jnp.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    slots = rng.normal(size=(NUM_PAGES * PAGE, 2 * KV_HEADS, HEAD_DIM))
    return metadata, table, q, k, v, jnp.asarray(slots, jnp.bfloat16)


def run_layer(backend, metadata, q, k, v, cache):
    """What the engine does in a layer."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    layer = backend.FlashAttention(HEADS, KV_HEADS, HEAD_DIM, page_size=PAGE, mesh=mesh)
    for name, array in metadata.items():
        setattr(layer.forward_metadata, name, jnp.asarray(array))
    radix = types.SimpleNamespace(layer_id=0, head_dim=HEAD_DIM, scaling=HEAD_DIM**-0.5)

    def step(q, k, v, cache):
        pool = types.SimpleNamespace(get_fused_kv_buffer=lambda _: cache)
        return layer(q, k, v, radix, None, pool)

    with jax.set_mesh(mesh):
        spread = jax.NamedSharding(mesh, PartitionSpec())
        return jax.jit(step)(*jax.device_put((q, k, v, cache), spread))


def expected(module, metadata, table, q, k, v, cache, q_lens):
    """The wheel's reference, over a cache into which new keys and values were put by hand."""
    new = np.array(cache.astype(jnp.float32))
    k, v = (np.asarray(x, np.float32).reshape(-1, KV_HEADS, HEAD_DIM) for x in (k, v))
    for i, q_len in enumerate(q_lens):
        for j in range(q_len):
            token = metadata["cu_q_lens"][i] + j
            place = metadata["seq_lens"][i] - q_len + j
            slot = table[i, place // PAGE] * PAGE + place % PAGE
            new[slot, 0::2], new[slot, 1::2] = k[token], v[token]
    num_seqs = metadata["distribution"][2:]
    out = module.ref_ragged_paged_attention_fused(
        q.astype(jnp.float32).reshape(-1, HEADS, HEAD_DIM),
        jnp.asarray(new).reshape(NUM_PAGES, PAGE, 2 * KV_HEADS, HEAD_DIM),
        jnp.asarray(metadata["seq_lens"]), jnp.asarray(table), jnp.asarray(metadata["cu_q_lens"]),
        jnp.asarray(num_seqs), sm_scale=HEAD_DIM**-0.5,
    )  # fmt: skip
    return np.asarray(out).reshape(out.shape[0], -1), new


STEPS = {
    # As the engine calls them: decode steps are all mixed, extend steps all prefill.
    "decode": ((1, 1, 1, 0), (33, 5, 64, 0), 4, (0, 0, 3)),
    "extend": ((7, 1, 20, 0), (7, 40, 50, 0), 32, (0, 3, 3)),
}


@pytest.mark.parametrize("kind", [pytest.param("decode", marks=pytest.mark.slow), "extend"])
def test_the_engines_layer_gives_the_references_answer(backend, stand_in, kind):
    q_lens, kv_lens, num_tokens, distribution = STEPS[kind]
    metadata, table, q, k, v, cache = make_step(
        q_lens, kv_lens, num_tokens=num_tokens, distribution=distribution
    )
    module = sys.modules[KERNEL]
    want, want_cache = expected(module, metadata, table, q, k, v, cache, q_lens)
    with stand_in.expect_calls():
        out, new_cache = run_layer(backend, metadata, q, k, v, cache)
    assert stand_in.calls == 1
    assert out.shape == q.shape
    np.testing.assert_allclose(
        np.asarray(out, np.float32)[: sum(q_lens)], want, rtol=0.02, atol=0.02
    )
    np.testing.assert_array_equal(np.asarray(new_cache, np.float32), want_cache)


def test_every_binding_is_replaced_and_put_back(backend):
    original = backend.ragged_paged_attention
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"))
    assert stand_in.places == [
        f"{KERNEL}.{sglang_jax.FUNCTION}",
        f"{sglang_jax.BACKEND}.{sglang_jax.FUNCTION}",
    ]
    assert backend.ragged_paged_attention is not original
    with pytest.raises(UsageError, match="has not called the stand-in"), stand_in.expect_calls():
        pass
    stand_in.uninstall()
    assert backend.ragged_paged_attention is original


def test_the_real_signature_is_the_one_that_is_known(backend):
    parameters = inspect.signature(backend.ragged_paged_attention).parameters
    known = sglang_jax.loaded_function()
    assert known is sglang_jax.RELEASED
    assert tuple(parameters)[: len(known.leading)] == known.leading


def test_a_backend_that_holds_another_function_is_refused(backend, monkeypatch):
    monkeypatch.setattr(backend, "ragged_paged_attention", lambda: None)
    with pytest.raises(UsageError, match="does not hold the function") as caught:
        sglang_jax.install(load_dispatcher(chip="v6e"))
    assert KERNEL in caught.value.where


def test_a_loaded_engine_that_has_drifted_is_refused_at_import(backend, monkeypatch):
    drifted = {"ragged_paged_attention": lambda queries, keys, custom_mask: None}
    monkeypatch.setitem(sys.modules, KERNEL, types.SimpleNamespace(**drifted))
    with pytest.raises(UsageError, match=r"arrays are \['queries', 'keys', 'custom_mask'\]"):
        runpy.run_path(sglang_jax.__file__)
