"""What is known of versions of jax and libtpu: pairs that are tested, and versions with faults.

The lists are `known_versions.yaml`. Light, because the serving foot reads it: no jax.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import Any

import yaml

_REQUIRED = re.compile(r"libtpu\s*==\s*([\w.*]+)")
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Versions that `make test-versions` compiles with.

    Attributes:
      python: Minor version, `3.12`.
      jax: Of jax and of jaxlib.
      libtpu: Of libtpu.
      why: Who pins or needs them.
    """

    python: str
    jax: str
    libtpu: str
    why: str

    def __str__(self) -> str:
        """`jax 0.12.0.1 with libtpu 0.0.50.1`."""
        return f"jax {self.jax} with libtpu {self.libtpu}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownBad:
    """A fault that others have reported of some versions of a package.

    Attributes:
      package: `jax` or `libtpu`.
      first: First version that has it; empty if it is not known.
      last: Last one; empty while there is none without it.
      what: What happens.
      touches: Whether kernels of ours are affected.
      cure: What helps.
      source: Where it is reported.
      chips: Those that have it; all if empty.
    """

    package: str
    first: str
    last: str
    what: str
    touches: str
    cure: str
    source: str
    chips: tuple[str, ...] = ()

    def has(self, version: str) -> bool:
        """Whether a version lies in the range."""
        number = version_number(version)
        return (not self.first or version_number(self.first) <= number) and (
            not self.last or number <= version_number(self.last)
        )

    def text(self, version: str) -> str:
        """One line about an installed version."""
        where = f" on {', '.join(self.chips)}" if self.chips else ""
        return f"{self.package} {version}{where}: {self.what}; {self.touches} ({self.source})"


def version_number(version: str) -> tuple[int, ...]:
    """`0.0.42.1` as numbers that compare in the order of releases; a suffix plays no part.

    Raises:
      ValueError: It does not begin with a number.
    """
    found = _NUMBERS.match(version)
    if found is None:
        raise ValueError(f"{version!r:.40} is no version: it must begin with a number")
    return tuple(map(int, found[0].split(".")))


def supported_pairs() -> tuple[Pair, ...]:
    """The pairs of the matrix test, oldest first."""
    return tuple(
        Pair(python=p["python"], jax=p["jax"], libtpu=p["libtpu"], why=p["for"])
        for p in _lists()["pairs"]
    )


def supported_libtpus() -> tuple[str, ...]:
    """Compilers whose schedules are understood by test, oldest first."""
    return tuple(dict.fromkeys(pair.libtpu for pair in supported_pairs()))


def pair_advice(versions: Mapping[str, str | None]) -> str:
    """Which jax and libtpu go together, for installed ones that are no tested pair; else empty.

    Args:
      versions: By package; None or missing if it is not installed.
    """
    jax, libtpu = versions.get("jax"), versions.get("libtpu")
    pairs = supported_pairs()
    if any((pair.jax, pair.libtpu) == (jax, libtpu) for pair in pairs):
        return ""
    own = _libtpu_of_jax()
    asked = f"jax {jax} itself asks for libtpu {own}; " if own else ""
    return f"{asked}tested are {', '.join(dict.fromkeys(map(str, pairs)))}"


def faults(versions: Mapping[str, str | None], chip: str | None = None) -> list[KnownBad]:
    """What is known to be wrong with installed versions.

    Args:
      versions: By package; None or missing if it is not installed.
      chip: Leaves out faults of other chips; all if None.
    """
    found = []
    for entry in _lists()["known_bad"]:
        fault = KnownBad(
            **{"first": "", "last": "", **entry, "chips": tuple(entry.get("chips", ()))}
        )
        version = versions.get(fault.package)
        is_here = chip is None or not fault.chips or chip in fault.chips
        if version and is_here and fault.has(version):
            found.append(fault)
    return found


def _libtpu_of_jax() -> str:
    """What the installed `jax[tpu]` requires, such as `0.0.50.*`; empty if it does not say."""
    try:
        required = metadata.requires("jax") or []
    except metadata.PackageNotFoundError:
        return ""
    found = (_REQUIRED.match(line) for line in required)
    return next((match[1] for match in found if match), "")


@functools.cache
def _lists() -> dict[str, Any]:
    lists: dict[str, Any] = yaml.safe_load(
        files("rpa_tune").joinpath("known_versions.yaml").read_text(encoding="utf-8")
    )
    return lists
