"""Replacing a function wherever an engine has bound it, on an engine that a test makes.

The engines themselves are in tests/aot and tests/interpret.
"""

import sys
import types

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.interop.stand_in import StandIn, check_drift


def attention(q, k, v, *, scale=1.0):
    """The engine's own."""
    return "original"


@pytest.fixture
def engine(monkeypatch):
    """An engine of three modules, two of which have the function, and a stranger."""
    modules = {}
    for name in ("fake_engine", "fake_engine.model", "fake_engine.other", "fake_engine_2"):
        modules[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, modules[name])
    for name in ("fake_engine", "fake_engine.model", "fake_engine_2"):
        modules[name].attend = attention
    modules["fake_engine.model"].again = attention
    modules["fake_engine.other"].attend = lambda *a, **k: "another function"
    return types.SimpleNamespace(**{name.rpartition(".")[2]: m for name, m in modules.items()})


def test_every_binding_in_the_package_is_replaced_and_no_other(engine) -> None:
    stand_in = StandIn()
    stand_in.replace(attention, lambda *args, **kwargs: ("ours", args, kwargs), "fake_engine")
    assert stand_in.places == [
        "fake_engine.attend", "fake_engine.model.attend", "fake_engine.model.again",
    ]  # fmt: skip
    assert engine.model.attend(1, 2, 3, scale=4) == ("ours", (1, 2, 3), {"scale": 4})
    assert engine.model.attend.__doc__ == "The engine's own."
    assert engine.fake_engine_2.attend(1, 2, 3) == "original"  # begins alike, and is another
    assert engine.other.attend() == "another function"
    engine.fake_engine.attend(1, 2, 3)
    assert stand_in.calls == 2
    stand_in.uninstall()
    assert engine.model.again is engine.fake_engine.attend is attention
    assert stand_in.places == []


def test_two_functions_are_put_back_in_their_places(engine) -> None:
    stand_in = StandIn()
    other = engine.other.attend
    stand_in.replace(attention, lambda *a: 1, "fake_engine")
    stand_in.replace(other, lambda *a: 2, "fake_engine")
    assert (engine.model.attend(0, 0, 0), engine.other.attend()) == (1, 2)
    stand_in.uninstall()
    assert (engine.model.attend, engine.other.attend) == (attention, other)


def test_a_stand_in_that_nothing_calls_is_refused_with_its_places(engine) -> None:
    stand_in = StandIn()
    with pytest.raises(UsageError, match="has not called the stand-in") as caught:
        stand_in.assert_intercepted()
    assert caught.value.where == "no place was replaced"
    stand_in.replace(attention, lambda *a: None, "fake_engine")
    with pytest.raises(UsageError) as caught:
        stand_in.assert_intercepted()
    assert "fake_engine.model.again" in caught.value.where
    engine.model.attend(1, 2, 3)
    stand_in.assert_intercepted()


def test_calls_before_a_block_do_not_count_for_it_and_are_not_lost(engine) -> None:
    stand_in = StandIn()
    stand_in.replace(attention, lambda *a: None, "fake_engine")
    engine.model.attend(1, 2, 3)
    with pytest.raises(UsageError), stand_in.expect_calls():
        pass
    assert stand_in.calls == 1
    with stand_in.expect_calls():
        engine.model.attend(1, 2, 3)
    assert stand_in.calls == 2


KNOWN = {"q", "k", "v", "scale"}


@pytest.mark.parametrize(
    ("function", "leading", "known", "says"),
    [
        (None, ("q",), KNOWN, "the public function is gone"),
        (attention, ("k", "q"), KNOWN, r"signature has drifted: arrays are \['q', 'k'\]"),
        (attention, ("q", "k", "v", "cache"), KNOWN, "arrays are"),
        (attention, ("q", "k", "v"), KNOWN - {"scale"}, r"unknown parameters \['scale'\]"),
    ],
)
def test_a_function_that_has_drifted_is_refused(function, leading, known, says) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        check_drift(function, "m.attend", leading=leading, known=known, hint="use 1.0")
    assert (caught.value.where, caught.value.hint) == ("m.attend", "use 1.0")


def test_a_function_that_has_lost_an_optional_parameter_is_still_the_one() -> None:
    check_drift(attention, "m", leading=("q", "k"), known=KNOWN | {"sinks"}, hint="")


def test_attention_of_another_kind_stays_and_is_named(engine, caplog) -> None:
    stand_in = StandIn()
    stand_in.replace(attention, lambda *a: None, "fake_engine")
    stand_in.watch(engine.other.attend, "fake_engine.other.attend", "fake_engine")
    for _ in range(2):
        assert engine.other.attend() == "another function"
    assert "fake_engine.other.attend runs the engine's own kernel" in caplog.text
    assert len(caplog.records) == 1
    with pytest.raises(UsageError, match=r"its own attention, fake_engine\.other\.attend 2 times"):
        stand_in.assert_intercepted()


def test_a_place_that_is_called_from_and_was_not_replaced_takes_everything_back(engine) -> None:
    stand_in = StandIn()
    stand_in.replace(attention, lambda *a: None, "fake_engine")
    stand_in.require(["fake_engine.model.attend"], "")
    with pytest.raises(UsageError, match=r"fake_engine.other does not hold the attend") as caught:
        stand_in.require(["fake_engine.model.attend", "fake_engine.other.attend"], "use 1.0")
    assert "fake_engine.model.attend" in caught.value.where
    assert engine.model.attend is attention


def test_a_call_that_fails_is_none(engine) -> None:
    def broken(*args, **kwargs):
        raise ValueError("no kernel")

    stand_in = StandIn()
    stand_in.replace(attention, broken, "fake_engine")
    with pytest.raises(ValueError, match="no kernel"):
        engine.model.attend(1, 2, 3)
    assert stand_in.calls == 0
