"""The plug-in of vLLM on TPU: `--attention-backend rpa_tune` (tpu-inference 0.32.0).

vLLM calls `register` in every process, because `pyproject.toml` names it as an entry point of
`vllm.general_plugins`. Options come with the engine's own flag:

```
vllm serve MODEL --attention-backend rpa_tune --additional-config '{"rpa_tune": {"tables": "mine"}}'
```

Imports nothing of an engine before one asks.
"""

import dataclasses
import functools
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

from rpa_tune.errors import UsageError

NAME = "rpa_tune"
_MODULE = "rpa_tune.interop.vllm_backend"
_DOOR = "tpu_inference.layers.common.attention_backend"
_log = logging.getLogger("rpa_tune.interop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What `--additional-config` may say under `rpa_tune`.

    Attributes:
      tables: Table folder, or several, over the shipped ones.
      chip: Name in the chip table; None for that of the attached TPU.
      on_miss: See `load_dispatcher`.
      artifact: See `load_dispatcher`. An engine that traces its layers compiles them, whatever this
        says: one warning.
      fallback: See `Guard`.
      shadow_calls: See `Guard`.
      shadow_share: See `Guard`.
      interpret: Whether kernels run under the interpreter: for tests on a CPU.
    """

    tables: str | tuple[str, ...] | None = None
    chip: str | None = None
    on_miss: str = "nearest"
    artifact: str | None = None
    fallback: bool = True
    shadow_calls: int = 0
    shadow_share: float = 0.0
    interpret: bool = False


def register() -> None:
    """The entry point: makes the name known to an engine that has the door for it."""
    if importlib.util.find_spec("tpu_inference") is None:
        return  # vLLM on other devices
    try:
        door = importlib.import_module(_DOOR)
    except ImportError as error:
        _log.info(
            "--attention-backend %s: tpu-inference has no such backends (%s); "
            "rpa_tune.interop.intercept.install replaces its functions",
            NAME, error,
        )  # fmt: skip
        return
    log_with_vllm()
    door.register_attention_backend(
        NAME, attention=functools.partial(make), vllm_backend=f"{_MODULE}.RpaTuneBackend"
    )


def make(soft_cap: float | None = None, chunk: int | None = None) -> Any:
    """The engine's `AttentionBackend`: its runner and every trace of a layer make one.

    Args:
      soft_cap: Cap of a layer's logits, which the engine's own layer drops.
      chunk: Tokens of a layer's attention chunks, likewise.
    """
    backend = importlib.import_module("rpa_tune.interop.tpu_inference_backend")
    return backend.make(soft_cap, chunk)


def variant(soft_cap: float | None, chunk: int | None) -> str:
    """Name of the backend for layers of their own kind, registered when first asked for.

    The engine hands a layer's call only the name of its backend.
    """
    if not soft_cap and not chunk:
        return NAME
    name = f"{NAME}_cap_{soft_cap or 0}_chunk_{chunk or 0}".replace(".", "p").replace("-", "m")
    importlib.import_module(_DOOR).register_attention_backend(
        name,
        attention=functools.partial(make, soft_cap or None, chunk or None),
        # A path of its own, so that the plain name stays the one that vLLM finds by its path.
        vllm_backend=f"{_MODULE}.{name}",
    )
    return name


def options_of(given: Any) -> Options:
    """Checks what a person wrote.

    Raises:
      UsageError: No object, an unknown name, or a value of the wrong type.
    """
    where = "--additional-config, rpa_tune"
    known = {field.name: field.type for field in dataclasses.fields(Options)}
    if given is None:
        return Options()
    if not isinstance(given, dict):
        raise UsageError(f"an object is needed, got {given!r:.60}", where=where)
    if unknown := sorted(set(given) - set(known)):
        raise UsageError(
            f"unknown option {unknown[0]!r}", where=where, hint=f"one of {', '.join(known)}"
        )
    given = dict(given)
    if isinstance(given.get("tables"), list):
        given["tables"] = tuple(given["tables"])
    for name, value in given.items():
        if not _fits(name, value):
            raise UsageError(f"{name}={value!r:.60} must be {known[name]}", where=where)
    return Options(**given)


def _fits(name: str, value: Any) -> bool:
    if name == "tables" and isinstance(value, tuple):
        return all(isinstance(one, str) for one in value)
    usual = getattr(Options(), name)
    if usual is None:
        return value is None or isinstance(value, str)
    if type(usual) is float:
        return type(value) in (int, float)
    return type(value) is type(usual)


def log_with_vllm() -> None:
    """Our lines go where vLLM's go: it sets up its own logger alone."""
    ours, theirs = logging.getLogger("rpa_tune"), logging.getLogger("vllm")
    if not ours.handlers and theirs.handlers:
        for handler in theirs.handlers:
            ours.addHandler(handler)
        ours.setLevel(theirs.level or logging.INFO)
        ours.propagate = False
