"""The stand-in in the real attention layer of tpu-inference 0.32.0, under jax's tracing.

The layer's module is loaded out of the wheel. What it imports of vllm and of kernels that are not
ours is replaced by empty stand-ins; the function under test, its look-up of the kernel and its
`shard_map` are the wheel's own.
"""

import logging
import runpy
import sys
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from table_rows import LATENT, PROBLEM

from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop import intercept
from rpa_tune.interop.guard import Guard
from rpa_tune.interop.public.tpu_inference import functions
from rpa_tune.interop.public.tpu_inference.package import WHEEL

pytestmark = pytest.mark.aot
COMMON = "tpu_inference.layers.common"
STUBS = {
    f"{COMMON}.attention_backend": ("AttentionBackend", "RPAAttentionBackend"),
    f"{COMMON}.cp_attention": ("dcp_forward", "pcp_forward"),
    f"{COMMON}.attention_metadata": ("AttentionMetadata", "SharedAttentionMetadata"),
    "tpu_inference.kernels.flash_attention.kernel": (
        "encoder_only_flash_attention", "flash_attention",
    ),
}  # fmt: skip


class Logger(logging.Logger):
    def info_once(self, *_):
        pass


class Axes:
    ATTN_DATA = "data"
    ATTN_HEAD = "model"
    BATCH = "data"
    MLP_TENSOR = "model"


@pytest.fixture(params=["v3", "batched"])
def kernel(request):
    """Which kernel the engine is told to use: `USE_BATCHED_RPA_KERNEL`."""
    return request.param


@pytest.fixture
def interface(monkeypatch, kernel):
    """The wheel's `attention_interface`, freshly imported."""
    from rpa_tune.compile.paths import default_cache_dir

    try:
        root = WHEEL.use(default_cache_dir())
    except UsageError as error:
        pytest.skip(f"no tpu-inference wheel: {error}")
    modules = {name: dict.fromkeys(members, type(name, (), {})) for name, members in STUBS.items()}
    modules["tpu_inference.logger"] = {"init_logger": Logger}
    modules[f"{COMMON}.sharding"] = {"ShardingAxisName": Axes}
    modules["tpu_inference.utils"] = {
        "get_megacore": lambda: False, "get_mesh_shape_product": lambda mesh, axis: 1,
        "get_device_name": None,
    }  # fmt: skip
    for name, members in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("USE_BATCHED_RPA_KERNEL", "1" if kernel == "batched" else "0")
    for name in ("v3", "hd64", "mla"):
        WHEEL.load(root, functions.MODULES[name])
    monkeypatch.delitem(sys.modules, intercept.INTERFACE, raising=False)
    yield WHEEL.load(root, intercept.INTERFACE)
    sys.modules.pop(intercept.INTERFACE, None)


def trace(interface, head_dim=128, **keywords):
    """What a warm-up of the engine does: traces its attention layer."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    p = replace(PROBLEM, head_dim=head_dim)
    new = jnp.zeros((p.max_num_tokens, p.num_kv_heads, p.head_dim), jnp.bfloat16)
    arrays = (
        jnp.zeros((p.max_num_tokens, p.num_q_heads, p.head_dim), jnp.bfloat16), new, new,
        jnp.zeros(p.kv_cache_shape, jnp.bfloat16), jnp.zeros(p.max_num_seqs, jnp.int32),
        jnp.zeros(p.max_num_seqs * p.pages_per_seq, jnp.int32),
        jnp.zeros(p.max_num_seqs + 1, jnp.int32), jnp.zeros(3, jnp.int32),
    )  # fmt: skip

    def layer(*arrays):
        return interface.sharded_ragged_paged_attention(
            mesh, *arrays, attention_sink=None, sm_scale=0.1, **keywords
        )

    return jax.eval_shape(layer, *arrays)


def test_the_engines_layer_calls_the_stand_in(interface, kernel):
    original = interface.ragged_paged_attention
    where = functions.MODULES[kernel]
    assert original is sys.modules[where].ragged_paged_attention
    stand_in = intercept.install(load_dispatcher(chip="v6e"))
    try:
        assert f"{intercept.INTERFACE}.ragged_paged_attention" in stand_in.places
        with stand_in.expect_calls():
            out, cache = trace(interface)
        assert stand_in.calls == 1
        assert out.shape == (PROBLEM.max_num_tokens, PROBLEM.num_q_heads, PROBLEM.head_dim)
        assert cache.shape == PROBLEM.kv_cache_shape
        with stand_in.expect_calls():  # the other function of the interface
            out, _ = trace(interface, head_dim=64)
        assert out.shape[2] == 64
        assert stand_in.calls == 2
    finally:
        stand_in.uninstall()
    assert interface.ragged_paged_attention is original


def trace_latent(interface):
    """The same of its layer with latents, which looks up blocks of its own and hands them over."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    p = LATENT
    metadata = types.SimpleNamespace(
        padded_num_reqs=p.max_num_seqs,
        seq_lens=jnp.zeros(p.max_num_seqs, jnp.int32),
        block_tables=jnp.zeros(p.max_num_seqs * p.pages_per_seq, jnp.int32),
        query_start_loc=jnp.zeros(p.max_num_seqs + 1, jnp.int32),
        request_distribution=jnp.zeros(3, jnp.int32),
    )
    dtype = jnp.dtype(p.q_dtype)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape in (
            (p.num_q_heads, p.max_num_tokens, p.head_dim),
            (p.max_num_tokens, p.num_q_heads, p.rope_dim),
            (p.max_num_tokens, p.head_dim),
            (p.max_num_tokens, p.rope_dim),
            p.kv_cache_shape,
        )
    ]

    def layer(*arrays):
        return interface.mla_attention(
            *arrays, metadata, mesh, p.num_q_heads, 128,
            q_scale=1.0, k_scale=1.0, v_scale=1.0, sm_scale=0.1,
        )  # fmt: skip

    return jax.eval_shape(layer, *arrays)


@pytest.mark.parametrize("guard", [None, Guard(shadow_calls=1, compile_first=False)])
@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_the_engines_latent_layer_calls_the_stand_in(interface, guard, monkeypatch):
    # A guard traces the engine's function, too, which asks what a chip has.
    has = types.SimpleNamespace(vmem_capacity_bytes=1 << 26)
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: has)
    monkeypatch.setattr(pltpu, "reciprocal", pl.reciprocal, raising=False)  # its name before 0.10
    original = interface.mla_ragged_paged_attention
    stand_in = intercept.install(load_dispatcher(chip="v7x"), guard=guard)
    try:
        assert f"{intercept.INTERFACE}.mla_ragged_paged_attention" in stand_in.places
        with stand_in.expect_calls():
            cache, out = trace_latent(interface)
        assert stand_in.calls == 1
        assert out.shape == (LATENT.num_q_heads, LATENT.max_num_tokens, LATENT.head_dim)
        assert out.dtype == jnp.dtype(LATENT.q_dtype)
        assert cache.shape == LATENT.kv_cache_shape
        assert guard is None or not guard.refused
    finally:
        stand_in.uninstall()
    assert interface.mla_ragged_paged_attention is original


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_a_name_bound_by_import_is_replaced_and_a_hidden_one_is_noticed(interface, monkeypatch):
    engine = types.ModuleType("tpu_inference.models.jax.some_model")
    engine.attention = interface.ragged_paged_attention  # from ... import ... as attention
    engine.hidden = {"attention": interface.ragged_paged_attention}
    monkeypatch.setitem(sys.modules, engine.__name__, engine)
    stand_in = intercept.install(load_dispatcher(chip="v6e"))
    try:
        assert f"{engine.__name__}.attention" in stand_in.places
        with (
            pytest.raises(UsageError, match="has not called the stand-in"),
            stand_in.expect_calls(),
        ):
            assert engine.hidden["attention"] is not engine.attention
    finally:
        stand_in.uninstall()


@pytest.mark.parametrize("kernel", ["batched"], indirect=True)
def test_several_tokens_in_the_decode_slot_are_served_by_the_mixed_kernel(interface):
    dispatcher = load_dispatcher(chip="v6e")
    planned = []
    plan = dispatcher.plan
    dispatcher.plan = lambda *given: planned.append(plan(*given)) or planned[-1]
    stand_in = intercept.install(dispatcher)
    try:
        trace(interface)
        trace(interface, decode_query_size=3)
    finally:
        stand_in.uninstall()
    assert [one.families for one in planned] == [("decode", "mixed"), ("mixed",)]


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_a_place_that_holds_another_function_is_refused(interface, monkeypatch):
    """As with a kernel that is not known, when the hd64 name alone can be replaced."""
    original = interface.ragged_paged_attention_hd64
    monkeypatch.setattr(interface, "ragged_paged_attention", lambda *arrays: None)
    with pytest.raises(UsageError, match="does not hold the ragged_paged_attention that it calls"):
        intercept.install(load_dispatcher(chip="v6e"))
    assert interface.ragged_paged_attention_hd64 is original


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_a_drifted_signature_is_named(interface, monkeypatch):
    module = sys.modules[functions.MODULES["v3"]]

    def drifted(queries, keys, values, kv_cache, kv_lens, page_indices, cu_q_lens, distribution,
                *, speculative_tree=None):  # fmt: skip
        del speculative_tree

    monkeypatch.setattr(module, "ragged_paged_attention", drifted)
    for notice in (
        lambda: intercept.install(load_dispatcher(chip="v6e")),
        lambda: runpy.run_path(intercept.__file__),  # an import anew
    ):
        with pytest.raises(UsageError, match=r"unknown parameters \['speculative_tree'\]"):
            notice()
    monkeypatch.setattr(module, "ragged_paged_attention", lambda q, k: None)
    with pytest.raises(UsageError, match=r"arrays are \['q', 'k'\]"):
        intercept.install(load_dispatcher(chip="v6e"))
    monkeypatch.delattr(module, "ragged_paged_attention")
    with pytest.raises(UsageError, match="is gone"):
        intercept.install(load_dispatcher(chip="v6e"))
