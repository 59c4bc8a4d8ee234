"""The stand-in in the real attention layer of tpu-inference 0.32.0, under jax's tracing.

The layer's module is loaded out of the wheel. What it imports of vllm and of kernels that are not
ours is replaced by empty stand-ins; the function under test, its look-up of the kernel and its
`shard_map` are the wheel's own.
"""

import importlib
import inspect
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

from rpa_kernels.problem import MAX_DECODE_QUERY
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.dispatch.mla_call import LatentArrays, LatentFeatures
from rpa_tune.errors import UsageError
from rpa_tune.interop import intercept
from rpa_tune.interop.engine_call import Served
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


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_our_latent_call_takes_every_argument_of_theirs(interface):
    names = inspect.signature(interface.mla_ragged_paged_attention).parameters
    leading = functions.LEADING["mla"]
    # Of ours alone: several new tokens of a decode sequence.
    assert set(names) == {*leading, *LatentFeatures.__annotations__} - {"decode_query_size"}
    assert tuple(names)[: len(leading)] == LatentArrays._fields


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
def test_tokens_in_the_decode_slot_are_as_many_as_the_engine_says(interface):
    dispatcher = load_dispatcher(chip="v6e")
    planned = []
    plan = dispatcher.plan
    dispatcher.plan = lambda *given: planned.append(plan(*given)) or planned[-1]
    stand_in = intercept.install(dispatcher)
    try:
        trace(interface)
        trace(interface, decode_query_size=3)
        trace(interface, decode_query_size=MAX_DECODE_QUERY + 1)
    finally:
        stand_in.uninstall()
    assert [one.families for one in planned] == [
        ("decode", "mixed"),
        ("decode", "mixed"),
        ("mixed",),
    ]
    assert [one.problem.decode_query_size for one in planned] == [1, 3, 1]


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


@pytest.fixture
def backend(interface, monkeypatch):
    """The plug-in's backend, in this engine."""
    name = "rpa_tune.interop.tpu_inference_backend"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("rpa_tune.interop.tpu_inference_backend")
    yield module
    sys.modules.pop(name, None)


def attend(backend, *, served, head_dim=128, sinks=False, soft_cap=None, chunk=None, **features):
    """What the engine's `attention` does with a registered backend; the shapes of the results."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    p = replace(PROBLEM, head_dim=head_dim)
    new = jnp.zeros((p.max_num_tokens, p.num_kv_heads, p.head_dim), jnp.bfloat16)
    ours = backend.RpaTuneAttention(served, soft_cap, chunk)
    shape = ours.get_kv_cache_shape(
        p.num_pages, p.page_size, p.num_kv_heads, head_dim, jnp.bfloat16
    )
    metadata = types.SimpleNamespace(
        block_tables=jnp.zeros(p.max_num_seqs * p.pages_per_seq, jnp.int32),
        seq_lens=jnp.zeros(p.max_num_seqs, jnp.int32),
        query_start_loc=jnp.zeros(p.max_num_seqs + 1, jnp.int32),
        request_distribution=jnp.zeros(3, jnp.int32),
    )
    keywords = {
        "head_dim_original": head_dim, "sm_scale": 0.1, "attention_chunk_size": None,
        "q_scale": None, "k_scale": None, "v_scale": None, "update_kv_cache": True,
        "use_causal_mask": True, "attn_logits_soft_cap": None, "decode_query_size": 1,
        "sinks": jnp.zeros(p.num_q_heads, jnp.bfloat16) if sinks else None, **features,
    }  # fmt: skip

    def layer(cache, q):
        return ours.attention(cache, q, new, new, metadata, metadata, mesh, **keywords)

    q = jnp.zeros((p.max_num_tokens, p.num_q_heads, p.head_dim), jnp.bfloat16)
    cache, out = jax.eval_shape(layer, jnp.zeros(shape, jnp.bfloat16), q)
    assert (cache.shape, out.shape) == (p.kv_cache_shape, q.shape)


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
@pytest.mark.parametrize(
    ("call", "expected"),
    [({"attention_chunk_size": 100}, {"sliding_window": 100, "attention_chunk_size": None}),
     ({"chunk": 64, "soft_cap": 5.0}, {"attention_chunk_size": 64, "soft_cap": 5.0}),
     ({"attn_logits_soft_cap": 7.0, "soft_cap": 5.0}, {"soft_cap": 7.0}),
     ({"sinks": True}, {"has_sinks": True}), ({"head_dim": 64, "sinks": True}, {"head_dim": 64}),
     ({"head_dim": 64, "update_kv_cache": False}, {"update_kv_cache": False}),
     ({"use_causal_mask": False}, {"causal": False})],
)  # fmt: skip
def test_the_plug_ins_backend_serves_the_engines_call(backend, call, expected):
    dispatcher = load_dispatcher(chip="v6e")
    attend(backend, served=Served(dispatcher=dispatcher), **call)
    (problem,) = dispatcher._menus
    assert {name: getattr(problem, name) for name in expected} == expected


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_long_drafts_in_the_decode_slot_have_the_mixed_kernel(backend):
    dispatcher = load_dispatcher(chip="v6e")
    attend(backend, served=Served(dispatcher=dispatcher), decode_query_size=MAX_DECODE_QUERY + 1)
    (menu,) = dispatcher._menus.values()
    assert [plan.families for plan in menu._plans.values()] == [("mixed",)]


@pytest.mark.parametrize("kernel", ["v3"], indirect=True)
def test_the_backend_takes_the_options_of_the_engine_that_is_set_up(
    backend, interface, monkeypatch
):
    given = {"rpa_tune": {"chip": "v6e", "shadow_calls": 2}}
    vllm = types.ModuleType("vllm.config")
    vllm.get_current_vllm_config_or_none = lambda: types.SimpleNamespace(additional_config=given)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.config", vllm)
    original = interface.ragged_paged_attention
    served = backend.make(None, None).served
    assert (served.dispatcher.chip.name, served.guard.shadow_calls) == ("v6e", 2)
    assert interface.ragged_paged_attention is not original  # what flax models call
    vllm.get_current_vllm_config_or_none = lambda: None  # as when a layer is traced
    assert backend.make(5.0, None).served is served
    given["rpa_tune"]["shadow_calls"] = 0
    vllm.get_current_vllm_config_or_none = lambda: types.SimpleNamespace(additional_config=given)
    assert not backend.make(None, None).served.guard.has_shadow
    backend.stand_in().uninstall()
    assert interface.ragged_paged_attention is original
