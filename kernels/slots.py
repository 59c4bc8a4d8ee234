"""Kernel families by name, and what each serves: which problems, which sequences. No jax."""

from rpa_kernels.problem import Problem

# Slots of a batch, in the order of its sequences: `Batch.distribution` has where each ends.
SLOTS = ("decode", "prefill", "mixed")
# Families of latent attention: their prefix, then the slot that each serves.
_LATENT = "mla-"
LATENT_FAMILIES = ("mla-decode", "mla-mixed")
FAMILIES = (*SLOTS, *LATENT_FAMILIES)


def slot_of(family: str) -> str:
    """The slot that a family serves."""
    return family.removeprefix(_LATENT)


def family_of(slot: str, *, is_latent: bool) -> str:
    """The family that serves a slot's sequences; for latents mixed serves those of prefill, too."""
    if not is_latent:
        return slot
    return LATENT_FAMILIES[slot != "decode"]


def is_latent(family: str) -> bool:
    """Whether a family serves problems of latent attention, and no others."""
    return family in LATENT_FAMILIES


def families_of(problem: Problem) -> tuple[str, ...]:
    """The families that can serve a problem, in launch order."""
    return LATENT_FAMILIES if problem.is_latent else SLOTS
