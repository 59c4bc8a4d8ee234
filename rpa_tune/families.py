"""Kernel families by name: ours, and the public kernels that a sweep can tune.

A public kernel is a family like any other to the sweep, the store and the tables: a config record,
axes, a heuristic to beat. What it lacks is an exact account and a launch of our own; see
`public_kernels.py`. No jax.
"""

from rpa_kernels import FAMILIES, KernelFamily
from rpa_kernels import load_family as _load_ours
from rpa_kernels.names import did_you_mean
from rpa_tune.public_kernels import PUBLIC_FAMILIES, PublicFamily

ALL_FAMILIES = (*FAMILIES, *PUBLIC_FAMILIES)


def load_family(name: str) -> KernelFamily:
    """The record of a family, ours or public.

    Raises:
      ValueError: `name` is not a family.
    """
    if name in PUBLIC_FAMILIES:
        return PUBLIC_FAMILIES[name]
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}: {did_you_mean(name, ALL_FAMILIES)}")
    return _load_ours(name)


def public_family(name: str) -> PublicFamily | None:
    """The record of a public kernel, or None when the family is ours."""
    return PUBLIC_FAMILIES.get(name)


def slots(name: str) -> tuple[str, ...]:
    """Which sequences of a batch a family serves: some of `decode`, `prefill` and `mixed`."""
    family = PUBLIC_FAMILIES.get(name)
    return (name,) if family is None else family.slots
