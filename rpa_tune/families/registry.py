"""All kernel families by name: ours, and those that `interop/public` has of public packages.

Loading a record loads neither jax nor a package that it comes from: those wait until something is
compiled or the function's own choice is asked for.
"""

import copyreg
import functools

from rpa_kernels import FAMILIES
from rpa_kernels.names import did_you_mean
from rpa_tune.families.family import Family
from rpa_tune.families.own import OwnFamily, own_family
from rpa_tune.interop.public.family import PublicFamily
from rpa_tune.interop.public.tokamax.families import TOKAMAX
from rpa_tune.interop.public.tpu_inference.families import TPU_INFERENCE

# The families of every public package. To add one: a folder in `interop/public`, and a word here.
_PUBLIC: dict[str, PublicFamily] = {**TPU_INFERENCE, **TOKAMAX}
ALL_FAMILIES = (*FAMILIES, *_PUBLIC)


@functools.cache
def load_family(name: str) -> Family:
    """The family of a name; the same object whenever it is asked for.

    Raises:
      ValueError: `name` is not a family.
    """
    if name in _PUBLIC:
        return _PUBLIC[name]
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}: {did_you_mean(name, ALL_FAMILIES)}")
    return own_family(name)


def known_family(name: str) -> Family | None:
    """The same for a name out of a file, which may be that of another version's family."""
    return load_family(name) if name in ALL_FAMILIES else None


def _by_name(family: Family) -> tuple[object, tuple[str]]:
    return load_family, (family.name,)


# A family holds functions: what is sent to a worker is its name.
for _kind in (OwnFamily, *{type(family) for family in _PUBLIC.values()}):
    copyreg.pickle(_kind, _by_name)  # type: ignore[arg-type]
