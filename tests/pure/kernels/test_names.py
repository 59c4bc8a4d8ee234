"""Spellings: what is understood, and what is answered with "did you mean"."""

import jax.numpy as jnp
import numpy as np
import pytest

from rpa_kernels import dtypes, layout
from rpa_kernels.names import did_you_mean, find_name
from rpa_kernels.problem import Problem

KNOWN = ("azure-conv", "azure-code", "v6e")


@pytest.mark.parametrize("word", ["azure-conv", "Azure_Conv", "AZURE CONV", "azureconv"])
def test_case_and_separators_do_not_matter(word):
    assert find_name(word, KNOWN) == "azure-conv"


@pytest.mark.parametrize("word", ["azure", "azure-con", "", "-", None, 6, ["v6e"], "v6"])
def test_nothing_else_is_guessed(word):
    assert find_name(word, KNOWN) is None


def test_other_names_count_and_names_that_look_alike_must_be_exact():
    assert find_name("Trillium", KNOWN, {"trillium": "v6e"}) == "v6e"
    assert find_name("trillium", KNOWN, {"trillium": "v9"}) is None
    alike = ("a-b", "ab")
    assert find_name("a-b", alike) == "a-b"
    assert find_name("A_B", alike) is None


def test_the_hint_names_all_that_are_equally_near():
    assert did_you_mean("v5", ("v5e", "v5p", "v6e")).startswith("did you mean v5e or v5p? known: ")
    assert did_you_mean("zzz", KNOWN) == "known: azure-conv, azure-code, v6e"
    assert did_you_mean("trilium", KNOWN, {"trillium": "v6e"}).startswith("did you mean v6e?")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("fp8", "float8_e4m3fn"), ("FP8_E5M2", "float8_e5m2"), ("bf16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"), ("F8E4M3FN", "float8_e4m3fn"), ("float", "float32"),
        (jnp.bfloat16, "bfloat16"), (np.dtype("int8"), "int8"), (jnp.float8_e5m2, "float8_e5m2"),
    ],
)  # fmt: skip
def test_dtypes_have_other_names(word, name):
    assert dtypes.dtype_name(word, layout.KV_DTYPES, "kv_dtype") == name


@pytest.mark.parametrize(
    ("word", "near"),
    [("float8_e4m3", "float8_e4m3fn"), ("e4m3", "float8_e4m3fn"), ("fp16", "bfloat16"),
     ("float8_e4m3fnuz", "float8_e4m3fn"), ("bfloat", "bfloat16")],
)  # fmt: skip
def test_another_dtype_is_no_other_name(word, near):
    """`float8_e4m3` and `fnuz` are kinds of their own; a near name is a hint, not an answer."""
    with pytest.raises(ValueError, match=f"kv_dtype={word!r}.*did you mean {near}"):
        dtypes.dtype_name(word, layout.KV_DTYPES, "kv_dtype")


def test_every_other_name_names_a_dtype_of_ours():
    assert set(dtypes.OTHER_NAMES.values()) <= set(layout.KV_DTYPES)


def test_a_problem_keeps_the_name_itself():
    sizes = {
        "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128, "page_size": 16,
        "max_num_tokens": 16, "max_num_seqs": 8, "pages_per_seq": 8, "num_pages": 64,
    }  # fmt: skip
    spelt = Problem(**sizes, q_dtype="BF16", kv_dtype="fp8")
    named = Problem(**sizes, q_dtype="bfloat16", kv_dtype="float8_e4m3fn")
    assert spelt == named
    assert hash(spelt) == hash(named)
    with pytest.raises(ValueError, match="did you mean float8_e5m2"):
        Problem(**sizes, kv_dtype="float8_e5m2fnuz")
