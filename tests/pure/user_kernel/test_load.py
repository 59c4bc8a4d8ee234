"""A function and its arguments in a worker, tracing it, and what is refused."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pure.user_kernel import kernels

from rpa_tune.hw.chip import load_chip
from rpa_tune.user_kernel import trace as tracing
from rpa_tune.user_kernel.answer import KernelTask
from rpa_tune.user_kernel.arguments import parse_arguments
from rpa_tune.user_kernel.load import load_call, load_function
from rpa_tune.user_kernel.refused import RefusedError
from rpa_tune.user_kernel.send import pickled
from rpa_tune.user_kernel.trace import trace

MODULE = "pure.user_kernel.kernels"
X = jax.ShapeDtypeStruct((8, 128), jnp.float32)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """The device itself plays no part in tracing these functions."""
    monkeypatch.setattr(tracing.target, "device_free_device", lambda chip: "a device")


def task(tmp_path, **fields):
    return KernelTask(chip=load_chip("v6e"), cache_dir=tmp_path, **fields)


def refusal(do, *args):
    with pytest.raises(RefusedError) as caught:
        do(*args)
    return caught.value.refusal


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("kernels", "names no function", "my_module:my_function"),
        ("no_such_module:f", "no module 'no_such_module'", "current folder"),
        ("no_such_file.py:f", "No such file", ""),
        (f"{MODULE}:plane", "has no 'plane'", "plain"),
        (f"{MODULE}:NOT_A_FUNCTION", "is no function", ""),
    ],
)
def test_what_is_no_function_is_named(text, message, hint):
    found = refusal(load_function, text, "TARGET")
    assert message in found.message
    assert hint in found.hint
    assert found.where.startswith("TARGET")


def test_a_module_that_raises_when_it_is_imported_is_named(tmp_path):
    path = tmp_path / "raises.py"
    path.write_text("raise RuntimeError('no weights here')\n")
    found = refusal(load_function, f"{path}:f", "TARGET")
    assert "raises RuntimeError: no weights here" in found.message


def test_arguments_are_text_with_values_and_keywords_over_them(tmp_path):
    asked = task(
        tmp_path,
        function=f"{MODULE}:plain",
        arguments=parse_arguments("s32[1] f32[8,128] repeats=3"),
        keywords={"repeats": 9},
        values={"starts": np.array([7], np.int32)},
    )
    function, positional, keywords = load_call(asked)
    assert function is kernels.plain
    assert positional[0].tolist() == [7]
    assert positional[1] == X
    assert keywords == {"repeats": 9}


def test_arguments_of_a_function_that_makes_them(tmp_path):
    asked = task(tmp_path, function=f"{MODULE}:plain", maker=f"{MODULE}:made")
    _, positional, keywords = load_call(asked)
    assert positional[0].tolist() == [5]
    assert keywords == {"repeats": 2}
    wrong = task(tmp_path, function=f"{MODULE}:plain", maker="math:inf")
    assert "is no function" in refusal(load_call, wrong).message


def test_values_that_are_of_no_argument_or_of_other_shapes_are_refused(tmp_path):
    fields = {"function": f"{MODULE}:plain", "arguments": parse_arguments("s32[2] f32[8,128]")}
    other = task(tmp_path, **fields, values={"start": np.zeros(2, np.int32)})
    found = refusal(load_call, other)
    assert "'start' is no argument" in found.message
    assert "starts" in found.hint
    longer = task(tmp_path, **fields, values={"starts": np.zeros(3, np.int32)})
    assert "starts is int32[3] in the file, but int32[2]" in refusal(load_call, longer).message


def test_decorated_functions_and_partials_are_sent_by_name(tmp_path):
    for function in (kernels.derived, functools.partial(kernels.plain, repeats=2)):
        sent = pickled((function, (np.array([7], np.int32), X), {}))
        found, positional, _ = load_call(task(tmp_path, pickled=sent))
        assert getattr(found, "func", found) in (kernels.derived, kernels.plain)
        assert positional[0].tolist() == [7]
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickled(lambda x: x)


def test_trees_of_arrays_are_traced_and_labelled():
    weights = {"starts": jax.ShapeDtypeStruct((1,), jnp.int32), "x": X}
    found = trace(kernels.tree, (weights,), {"block": 2}, load_chip("v6e"))
    (call,) = found.calls
    assert call.operands[0].sources == ("weights['starts']",)


def test_code_that_asks_for_the_device_is_told_the_chip():
    asked = []

    def function(x):
        asked.extend([jax.default_backend(), jax.devices()])
        return kernels.twice(x)

    trace(function, (X,), {}, load_chip("v6e"))
    assert asked == ["tpu", ["a device"]]


def test_a_function_that_raises_is_refused_with_its_line():
    found = refusal(trace, kernels.broken, (X,), {}, load_chip("v6e"))
    assert "raises ValueError: cannot take (8, 128)" in found.message
    assert found.where.endswith(f"kernels.py:{kernels.broken.__code__.co_firstlineno + 2}")


def test_a_call_is_chosen_by_name():
    several = trace(kernels.twice, (X,), {}, load_chip("v6e"))
    found = refusal(several.choose, "")
    assert "2 Pallas calls: _double, _double#2" in found.message
    assert "--call _double" in found.hint
    assert several.choose("_double#2") is several.calls[1]
    assert "no Pallas call is called 'triple'" in refusal(several.choose, "triple").message
    without = trace(kernels.none, (X,), {}, load_chip("v6e"))
    assert "makes no Pallas call" in refusal(without.choose, "").message
