"""Models with latents as servers: who has which heads, bytes of a token, families, weights."""

import dataclasses

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.families.registry import load_family
from rpa_tune.models.catalog import load_model
from rpa_tune.models.padding import padding_note, token_bytes, useful_token_bytes
from rpa_tune.models.server import Server
from rpa_tune.sweep.study import pair_up

FLAGS = {"model": "deepseek-v3", "chip": "v7x", "max_num_seqs": 16, "max_num_batched_tokens": 512}


def problem_of(**flags):
    (share,) = Server(**FLAGS | flags).layers()
    assert share.name == "latent"
    return share.problem


@pytest.mark.parametrize("tp", [1, 8, 16, 32])
def test_in_tpu_inference_a_device_has_all_heads_and_a_share_of_the_sequences(tp):
    server = Server(**FLAGS, tp=tp)
    problem = problem_of(tp=tp)
    assert (problem.num_q_heads, problem.num_kv_heads) == (128, 1)
    assert (problem.head_dim, problem.rope_dim) == (512, 64)
    assert (server.page_size, problem.kv_cache_shape[1:]) == (1024, (32, 32, 640))
    assert server.ranks == tp
    # Each rank has the sequences of its own; the tokens of all are padded together.
    assert {shape.num_seqs for shape in server.shapes()} == {16}
    tokens = [shape.num_tokens for shape in server.shapes()]
    assert (tokens[0], tokens[-1]) == (max(16, 2 * tp) // tp, 512)


def test_queries_have_the_dtype_of_a_quantised_cache_as_the_engine_rounds_them():
    assert problem_of(kv_dtype="float8_e4m3fn").q_dtype == "float8_e4m3fn"
    assert problem_of().q_dtype == "bfloat16"


def test_sglang_jax_shares_the_heads():
    others = {"engine": "sglang-jax", "page_size": 128}
    for tp, heads in ((8, 16), (16, 8)):
        problem = problem_of(tp=tp, **others)
        assert (problem.num_q_heads, problem.kv_packing, problem.q_dtype) == (
            heads,
            None,
            "bfloat16",
        )
        assert Server(**FLAGS, tp=tp, **others).ranks == 1
    with pytest.raises(UsageError, match=r"cannot run at tp=3"):
        problem_of(tp=3, **others)


def test_layers_without_latents_are_divided_as_ever():
    server = Server(**FLAGS | {"model": "llama3-8b"}, tp=8)
    assert server.ranks == 1
    assert [share.problem.num_q_heads for share in server.layers()] == [4]


@pytest.mark.parametrize(("kv_dtype", "width"), [("bfloat16", 2), ("float8_e4m3fn", 1)])
def test_a_token_is_a_latent_and_a_rope_row_and_the_padding_of_the_latter(kv_dtype, width):
    problem = problem_of(kv_dtype=kv_dtype)
    assert (token_bytes(problem), useful_token_bytes(problem)) == (640 * width, 576 * width)
    assert problem.kv_token_bytes == token_bytes(problem)
    assert f"{64 * width} of the {640 * width} bytes" in padding_note(problem).replace(",", "")
    assert Server(**FLAGS, kv_dtype=kv_dtype, tp=8).context_token_bytes == 61 * 640 * width


@pytest.mark.parametrize(
    ("name", "billions"), [("deepseek-v3", 671), ("deepseek-r1", 671), ("kimi-k2", 1026)]
)
def test_the_weights_are_those_of_the_published_sizes(name, billions):
    # The papers: 671B for DeepSeek-V3, 1.04T for Kimi K2.
    assert load_model(name).weights.total_params / 1e9 == pytest.approx(billions, rel=0.01)


def test_matrices_see_the_tokens_of_all_ranks():
    alone, shared = (Server(**FLAGS, tp=tp).knobs["step_time"] for tp in (1, 8))
    # Eight devices share each matrix, and have eight times the tokens between them.
    assert shared["us_per_token"] == pytest.approx(alone["us_per_token"], rel=0.01)
    assert alone["weights_us"] / 8 < shared["weights_us"] < alone["weights_us"]


def test_families_are_those_of_the_cache():
    assert Server(**FLAGS).own_families() == ("mla-decode", "mla-mixed")
    llama = Server(**FLAGS | {"model": "llama3-8b"}, uses_prefill=True)
    assert llama.own_families() == ("decode", "prefill", "mixed")
    names = ("decode", "mla-decode", "public-mla-mixed", "public-v3-mixed")
    families = [load_family(name) for name in names]
    for flags, wanted in ((FLAGS, names[1:3]), (FLAGS | {"model": "llama3-8b"}, names[::3])):
        ((_, serving),) = pair_up(Server(**flags).layers(), families)
        assert tuple(family.name for family in serving) == wanted
    with pytest.raises(UsageError, match="decode: none of these families is for the latent layers"):
        pair_up(Server(**FLAGS).layers(), families[:1])


def test_a_kind_of_layers_is_latent_by_its_rope_row():
    (kind,) = load_model("kimi-k2").kinds
    assert kind.is_latent
    assert not dataclasses.replace(kind, rope_dim=None).is_latent
