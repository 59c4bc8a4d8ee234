"""The plug-in's door and options; whole engines are in tests/engines."""

import sys
import tomllib
import types
from pathlib import Path

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.interop import vllm_plugin
from rpa_tune.interop.vllm_options import Options, options_of
from rpa_tune.interop.vllm_plugin import register, variant


@pytest.fixture
def door(monkeypatch):
    """An engine that has the door, and what came through it."""
    came = {}
    for name in ("tpu_inference", "tpu_inference.layers", "tpu_inference.layers.common"):
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = [], types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, package)
    module = types.ModuleType("tpu_inference.layers.common.attention_backend")
    module.register_attention_backend = lambda name, **how: came.__setitem__(name, how)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return came


def test_the_entry_point_registers_the_name(door):
    project = tomllib.loads(Path(__file__).parents[3].joinpath("pyproject.toml").read_text())[
        "project"
    ]
    points = project["entry-points"]["vllm.general_plugins"]
    assert points == {"rpa_tune": f"{register.__module__}:{register.__name__}"}
    register()
    register()  # vLLM may call it more than once in a process
    assert list(door) == ["rpa_tune"]
    assert door["rpa_tune"]["vllm_backend"] == "rpa_tune.interop.vllm_backend.RpaTuneBackend"


def test_an_engine_without_the_door_is_told_of_the_other_way(monkeypatch, caplog):
    package = types.ModuleType("tpu_inference")
    package.__path__, package.__spec__ = [], types.SimpleNamespace(name="tpu_inference")
    monkeypatch.setitem(sys.modules, "tpu_inference", package)
    with caplog.at_level("INFO", "rpa_tune.interop"):
        register()
    assert "rpa_tune.interop.intercept.install" in caplog.text


def test_vllm_on_other_devices_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(vllm_plugin.importlib.util, "find_spec", lambda name: None)
    register()
    assert caplog.text == ""


def test_layers_of_their_own_kind_have_a_name_of_their_own(door):
    assert variant(None, None) == variant(0.0, None) == "rpa_tune"
    assert door == {}
    name = variant(50.5, 8192)
    assert name.isidentifier()
    assert name != variant(50.5, None)
    assert door[name]["attention"].args == (50.5, 8192)
    assert door[name]["vllm_backend"] != "rpa_tune.interop.vllm_backend.RpaTuneBackend"


def test_options():
    assert options_of(None) == Options()
    found = options_of({"tables": ["a", "b"], "shadow_calls": 3, "shadow_share": 1, "chip": "v6e"})
    assert found == Options(tables=("a", "b"), shadow_calls=3, shadow_share=1, chip="v6e")


@pytest.mark.parametrize(
    ("given", "says"),
    [("tables", "an object is needed"), ({"table": "x"}, "unknown option 'table'"),
     ({"shadow_calls": "3"}, "shadow_calls='3' must be"), ({"fallback": 1}, "fallback=1 must be"),
     ({"tables": [1]}, "tables=.1,. must be"), ({"chip": 6}, "chip=6 must be")],
)  # fmt: skip
def test_options_that_cannot_be(given, says):
    with pytest.raises(UsageError, match=says) as caught:
        options_of(given)
    assert caught.value.where == "--additional-config, rpa_tune"
