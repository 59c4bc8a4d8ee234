"""Arguments of a function as a person writes them."""

import numpy as np
import pytest

from rpa_tune.errors import UsageError
from rpa_tune.user_kernel.arguments import ArrayArgument, load_values, parse_arguments


def test_arrays_values_python_values_and_names():
    found = parse_arguments(
        "bf16[8,128], float32[] s32[4](700,90,1,1) s32[64](512) 128 (1, 2) 'a b' "
        "causal=True scale=f32[](0.5) window=None"
    )
    assert found.positional == (
        ArrayArgument(dtype="bfloat16", shape=(8, 128)),
        ArrayArgument(dtype="float32", shape=()),
        ArrayArgument(dtype="int32", shape=(4,), values=(700, 90, 1, 1)),
        ArrayArgument(dtype="int32", shape=(64,), values=(512,)),
        128,
        (1, 2),
        "a b",
    )
    assert found.keywords == {
        "causal": True,
        "scale": ArrayArgument(dtype="float32", shape=(), values=(0.5,)),
        "window": None,
    }


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("bf6[8]", "'bf6' is no dtype", "did you mean bf16"),
        ("bf16[8,x]", "axes are whole numbers", "bf16[8,1024,128]"),
        ("bf16[-8]", "axes are whole numbers", ""),
        ("s32[4](1,2)", "has 2 values", "it takes 4, or one for all"),
        ("s32[2](1,2.5)", "2.5 is no int32", "-2147483648 to"),
        ("u8[1](256)", "256 is no uint8", "0 to 255"),
        ("s32[1](__import__('os'))", "values are numbers", ""),
        ("bf16[8", "has no end", ""),
        ("causal=True bf16[8]", "has no name, but stands behind causal=", "come first"),
        ("a=1 a=2", "a= stands twice", ""),
        ("hello", "neither dtype[axes] nor a Python value", ""),
        ("open('x')", "neither dtype[axes] nor a Python value", ""),
    ],
)
def test_what_is_none_of_these_is_named(text, message, hint):
    with pytest.raises(UsageError) as caught:
        parse_arguments(text)
    assert message in caught.value.args[0]
    assert hint in caught.value.hint
    assert caught.value.where == "--shapes"


def test_a_file_of_values_has_names(tmp_path):
    path = tmp_path / "values.npz"
    np.savez(path, kv_lens=np.arange(3, dtype=np.int32))
    assert load_values(path)["kv_lens"].tolist() == [0, 1, 2]
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("one.npy", "text.npz"):
        with pytest.raises(UsageError, match=r"not an \.npz") as caught:
            load_values(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
