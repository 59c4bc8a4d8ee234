"""What `--additional-config` of vLLM may say under `rpa_tune`, and where our log lines go then."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from rpa_tune.errors import UsageError


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
