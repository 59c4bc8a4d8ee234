"""`rpa_tune.ragged_paged_attention` refuses and donates what the public functions do."""

import inspect
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import make_problem
from interpret.public_wheel import public_module
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import rpa_tune
from rpa_kernels.batch import Batch
from rpa_kernels.verify import draw_operands
from rpa_tune.dispatch.call import Arrays, Features, check_lengths, problem_of
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.functions import pretend
from rpa_tune.tables.reader import Tables

KERNELS = ("v3", "hd64")
WORD_BYTES = 4
BATCH = Batch(q_lens=(1, 1, 9), kv_lens=(1, 40, 40), num_decode=2)
NAMES = Arrays._fields[:8]


def problem_for(kernel, **changes):
    return make_problem(
        head_dim=64 if kernel == "hd64" else 80, max_num_tokens=24, max_num_seqs=4,
        pages_per_seq=8, num_pages=24, **changes,
    )  # fmt: skip


def abstract_arrays(kernel):
    """Shapes and dtypes of a good call, by name."""
    p = problem_for(kernel)
    new = ((p.max_num_tokens, p.num_kv_heads, p.head_dim), p.kv_dtype)
    shapes = [
        ((p.max_num_tokens, p.num_q_heads, p.head_dim), p.q_dtype), new, new,
        (p.kv_cache_shape, p.kv_dtype), ((4,), "int32"), ((32,), "int32"), ((5,), "int32"),
        ((3,), "int32"),
    ]  # fmt: skip
    arrays = {n: jax.ShapeDtypeStruct(*s) for n, s in zip(NAMES, shapes, strict=True)}
    if kernel == "hd64":
        arrays["attention_sink"] = jax.ShapeDtypeStruct((p.num_q_heads,), jnp.float32)
    return arrays


def changed(**changes):
    """A mutation of those of some arrays that a call has: functions of the shape, or dtypes."""

    def mutate(arrays):
        for name in changes.keys() & arrays.keys():
            old, change = arrays[name], changes[name]
            shape, dtype = (change(old.shape), old.dtype) if callable(change) else (
                old.shape, change)  # fmt: skip
            arrays[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    return mutate


def cache_of(dtype):
    """Keys, values and a cache of another dtype, laid out for it."""

    def mutate(arrays):
        changed(keys=dtype, values=dtype)(arrays)
        pages, page_size, words, packing, lanes = arrays["kv_cache"].shape
        info = jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo
        wide = 8 * WORD_BYTES // info(dtype).bits
        shape = (pages, page_size, -(-words * packing // wide), wide, lanes)
        arrays["kv_cache"] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    return mutate


# What the public check takes and ours does not: caches in every other floating-point type of jax
# (float64, a word of two, it refuses), and queries in any type whatever.
CACHES = (
    "float16", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float8_e4m3",
    "float8_e3m4", "float8_e8m0fnu", "float4_e2m1fn",
)  # fmt: skip
QUERIES = (*CACHES, "float64", "float8_e4m3fn", "float8_e5m2", "int8", "int4", "uint8", "int32")

ARRAYS = {
    "good": changed(),
    "queries flat": changed(queries=lambda s: s[:2]),
    "new KV of 4 dimensions": changed(keys=lambda s: (*s, 1), values=lambda s: (*s, 1)),
    "values shorter": changed(values=lambda s: (s[0] - 1, *s[1:])),
    "values of other heads": changed(values=lambda s: (s[0], 1, s[2])),
    "queries shorter": changed(queries=lambda s: (16, *s[1:])),
    "queries wider": changed(queries=lambda s: (*s[:2], 128)),
    "heads that do not divide": changed(queries=lambda s: (s[0], 3, s[2]),
                                        attention_sink=lambda s: (3,)),
    "cache of 4 dimensions": changed(kv_cache=lambda s: s[:4]),
    "cache of more heads": changed(kv_cache=lambda s: (*s[:2], s[2] + 1, *s[3:])),
    "cache with other packing": changed(kv_cache=lambda s: (*s[:3], 4, s[4])),
    "cache of narrow rows": changed(kv_cache=lambda s: (*s[:4], 64)),
    "cache of wide rows": changed(kv_cache=lambda s: (*s[:4], 256)),
    "cache in another dtype": changed(kv_cache="float32"),
    "keys in another dtype": changed(keys="float32"),
    "page of part of a word": changed(kv_cache=lambda s: (s[0], 3, *s[2:])),
    "kv_lens of 16 bits": changed(kv_lens="int16"),
    "page_indices unsigned": changed(page_indices="uint32"),
    "cu_q_lens not integers": changed(cu_q_lens="float32"),
    "distribution of 16 bits": changed(distribution="int16"),
    "kv_lens of 2 dimensions": changed(kv_lens=lambda s: (2, 2)),
    "page_indices of 2 dimensions": changed(page_indices=lambda s: (4, 8)),
    "cu_q_lens of 2 dimensions": changed(cu_q_lens=lambda s: (5, 1)),
    "a page too few": changed(page_indices=lambda s: (31,)),
    "a start too few": changed(cu_q_lens=lambda s: (4,)),
    "distribution of two": changed(distribution=lambda s: (2,)),
    "distribution of 2 dimensions": changed(distribution=lambda s: (3, 1)),
    "sink of other heads": changed(attention_sink=lambda s: (3,)),
    "sink of 16 bits": changed(attention_sink="bfloat16"),
    **{f"{dtype} queries": changed(queries=dtype) for dtype in QUERIES},
    **{f"{dtype} cache": cache_of(dtype) for dtype in (*CACHES, "int8")},
}  # fmt: skip
# What only these kernels take, and what only the public function's validation lets through.
WIDER = {"int8 cache"}
NARROWER = {f"{dtype} queries" for dtype in QUERIES} | {f"{dtype} cache" for dtype in CACHES}

FEATURES = {
    **{f"window {n}": {"sliding_window": n} for n in (-1, 0, 1)},
    **{f"cap {x}": {"soft_cap": x} for x in (0.0, -1.0, 1.0)},
    **{f"chunk {n}": {"chunk_prefill_size": n} for n in (-1, 0, 8)},
    **{f"mask value {x}": {"mask_value": x} for x in (-1e30, 0.0, 5.0, float("-inf"))},
    **{f"scales {x}": {"q_scale": x, "k_scale": x, "v_scale": x} for x in (None, 0.5, 2)},
    **{f"softmax scale {x}": {"sm_scale": x} for x in (-1.0, 0.0, 2)},
    **{f"VMEM {n}": {"vmem_limit_bytes": n} for n in (-1, 0, 1)},
    "promise with a causal mask": {"skip_kv_mask": True},
    "promise without": {"skip_kv_mask": True, "use_causal_mask": False},
    **{
        f"{name} {sizes}": {name: sizes}
        for name in ("d_block_sizes", "p_block_sizes", "m_block_sizes")
        for sizes in (
            (8, 32, 8, 32), (8, 32, 0, 32), (8, 32, 3, 32), (8, 32, 8, 0), (8, 32, 8, 24),
            (8, 24, 8, 24), (8, 32, 8, 8),
        )
    },
}  # fmt: skip


def refusal(function, *args, **kwargs):
    """Type of the exception that a call raises, or None."""
    try:
        function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        return type(error)
    return None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ARRAYS)
def test_the_same_arrays_are_refused(kernel, name):
    arrays = abstract_arrays(kernel)
    ARRAYS[name](arrays)
    public = refusal(public_module(kernel).static_validate_inputs, **arrays)
    ours = refusal(problem_of, Arrays(**arrays))
    if name in WIDER:
        assert (public, ours) == (ValueError, None)
    elif name in NARROWER:
        assert (public, ours) == (None, ValueError)
    else:
        assert ours is public
        # v3 has no sink that could be wrong.
        assert (ours is None) == (name == "good" or (kernel == "v3" and "sink" in name))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", FEATURES)
def test_the_same_features_are_refused(kernel, name):
    module, options = public_module(kernel), FEATURES[name]
    validate = module.static_validate_inputs
    if not set(options) <= set(inspect.signature(validate).parameters):
        pytest.skip(f"the public {kernel} function has no such argument")
    arrays = abstract_arrays(kernel)
    public = refusal(validate, **arrays, **options)
    assert refusal(problem_of, Arrays(**arrays), **options) is public


BAD_NUMBERS = (
    *({name: x} for name in ("q_scale", "k_scale", "v_scale") for x in (
        0.0, -1.0, float("nan"), float("inf"), True, "1")),
    *({name: x} for name in ("sm_scale", "soft_cap") for x in (
        float("nan"), float("inf"), -float("inf"), "1")),
    {"sm_scale": None}, {"mask_value": float("nan")}, {"mask_value": "low"},
    {"sliding_window": 2.5}, {"sliding_window": True}, {"chunk_prefill_size": 2.5},
    {"vmem_limit_bytes": "1"}, {"out_dtype": "float64"}, {"out_dtype": "int8"},
    *({"attention_chunk_size": x} for x in (0, -1, 2.5, True, 2**31)),
    {"attention_chunk_size": 8, "sliding_window": 8},
    {"attention_chunk_size": 8, "use_causal_mask": False},
)  # fmt: skip


@pytest.mark.parametrize("options", BAD_NUMBERS, ids=str)
def test_numbers_that_give_no_attention_are_refused(options):
    """More than the public check, whose kernels would give NaN or fail when they are traced."""
    with pytest.raises(ValueError, match=next(iter(options))):
        problem_of(Arrays(**abstract_arrays("v3")), **options)


@pytest.mark.parametrize("name", ["k_scale", "sm_scale", "sliding_window", "mask_value"])
def test_values_that_are_traced_are_refused_in_words(name):
    """A feature is static: compiled into the kernel, and checked once."""
    arrays = Arrays(**abstract_arrays("v3"))
    with pytest.raises(ValueError, match=f"{name}=.*known when compiling"):
        jax.jit(lambda x: problem_of(arrays, **{name: x}) and x)(1)


def test_numbers_of_numpy_are_numbers():
    features = {"k_scale": np.float32(0.5), "sliding_window": np.int32(7)}
    problem = problem_of(Arrays(**abstract_arrays("v3")), **features)
    assert (problem.k_scale, problem.sliding_window) == (0.5, 7)


def test_a_window_that_no_context_reaches_beyond_makes_no_kernel_of_its_own():
    """Nor does one that a server plans for: its calls come without it."""
    arrays = Arrays(**abstract_arrays("v3"))
    plain = problem_of(arrays)
    longest = plain.max_context_tokens
    assert problem_of(arrays, sliding_window=longest) == plain
    assert problem_of(arrays, sliding_window=longest - 1).sliding_window == longest - 1
    dispatcher = load_dispatcher("v6e")
    for name in ("sliding_window", "attention_chunk_size"):
        reaching = replace(plain, **{name: longest})
        assert dispatcher.plans(reaching) == dispatcher.plans(plain)
    assert problem_of(arrays, attention_chunk_size=longest) == plain


def metadata(**changes):
    arrays = BATCH.arrays(problem_for("v3"))
    fields = {name: getattr(arrays, name).copy() for name in NAMES[4:]}
    for name, (index, value) in changes.items():
        fields[name][index] = value
    return fields


LENGTHS = {
    "good": {},
    "falls": {"distribution": (1, 1)},
    "ends before it": {"distribution": (2, 1)},
    "more sequences than rows": {"distribution": (2, 5)},
    "more tokens than rows": {"cu_q_lens": (slice(3, None), 25)},
    "no query tokens": {"cu_q_lens": (slice(3, None), 2)},
    "negative query tokens": {"cu_q_lens": (slice(3, None), 1)},
    "context shorter than its queries": {"kv_lens": (2, 8)},
    "context past its pages": {"kv_lens": (1, 129)},
    "page past the cache": {"page_indices": (10, 24)},
    "negative page": {"page_indices": (0, -1)},
    "unused page past the cache": {"page_indices": (7, 99)},
    "unused length": {"kv_lens": (3, -5)},
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
def test_the_same_lengths_are_refused(name):
    fields = metadata(**LENGTHS[name])
    arrays = {n: a for n, a in abstract_arrays("v3").items() if n not in fields} | fields
    public = refusal(public_module("v3").dynamic_validate_inputs, **arrays)
    assert refusal(check_lengths, Arrays(**arrays), problem_for("v3")) is public
    assert (public is None) == (name == "good" or name.startswith("unused"))


def test_decode_sequences_of_several_tokens_are_refused():
    """More than the public check, whose kernel would compute one token of each."""
    fields = metadata(distribution=(slice(0, 2), 3))
    arrays = abstract_arrays("v3") | fields
    with pytest.raises(ValueError, match="one token each"):
        check_lengths(Arrays(**arrays), problem_for("v3"))


def test_one_part_of_several_may_have_less_than_the_queries():
    problem = replace(problem_for("v3"), return_lse=True, causal=False, update_kv_cache=False)
    arrays = abstract_arrays("v3") | metadata(kv_lens=(slice(0, 2), 0))
    check_lengths(Arrays(**arrays), problem)
    with pytest.raises(ValueError, match="sequence 0: need 0 < q_len <= kv_len"):
        check_lengths(Arrays(**arrays), replace(problem, causal=True))
    arrays["kv_lens"][1] = -1
    with pytest.raises(ValueError, match="sequence 1: need 0 < q_len and 0 <= kv_len"):
        check_lengths(Arrays(**arrays), problem)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_public_argument_is_taken(kernel):
    function = {"v3": "ragged_paged_attention", "hd64": "ragged_paged_attention_hd64"}[kernel]
    public = inspect.signature(getattr(public_module(kernel), function)).parameters
    ours = inspect.signature(rpa_tune.ragged_paged_attention).parameters
    leading = [n for n, p in public.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(leading)] == leading
    theirs = set(public) - set(leading) - {"num_kv_pages_per_block", "num_queries_per_block"}
    assert theirs <= set(Features.__annotations__)


def fake_pallas_call(kernel, *, out_shape, input_output_aliases, **_):
    """Launches nothing: an output is the input it is aliased to."""
    del kernel, out_shape
    return lambda *operands: [operands[i] for i in sorted(input_output_aliases)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_buffers_are_donated(kernel):
    module, chip = public_module(kernel), load_chip("v6e")
    problem = problem_for(kernel)

    def call_arrays():
        ops = draw_operands(problem, BATCH)
        host = [getattr(ops.arrays, name) for name in NAMES[4:]]
        return [ops.queries, ops.keys, ops.values, ops.kv_cache, *map(jnp.asarray, host)]

    public, ours = call_arrays(), call_arrays()
    blocks = {"d_block_sizes": (1, 32, 1, 32), "m_block_sizes": (8, 32, 8, 32)}
    if kernel == "hd64":
        blocks = {"num_kv_pages_per_block": 2, "num_queries_per_block": 8}
    function = {"v3": "ragged_paged_attention", "hd64": "ragged_paged_attention_hd64"}[kernel]
    with (
        pretend(chip, module),
        mock.patch.object(pl, "pallas_call", fake_pallas_call),
        mock.patch.object(pltpu, "with_memory_space_constraint", lambda x, _: x),
    ):
        getattr(module, function)(*public, vmem_limit_bytes=1 << 26, **blocks)
        dispatcher = Dispatcher(chip, Tables(), on_miss="heuristic")
        rpa_tune.ragged_paged_attention(*ours, plan=dispatcher)
    jax.clear_caches()  # of what was traced with the stand-in
    deleted = [array.is_deleted() for array in ours]
    assert deleted == [array.is_deleted() for array in public]
    assert deleted[3]


def test_without_a_plan_or_a_tpu_the_call_says_so():
    arrays = abstract_arrays("v3") | metadata()
    with pytest.raises(UsageError, match="not a TPU"):
        rpa_tune.ragged_paged_attention(**arrays)
