"""What one call launches: families and configs. Hashable, so it can be static to `jit`."""

from dataclasses import dataclass, field
from typing import Any

from rpa_kernels.problem import Problem
from rpa_kernels.slots import FAMILIES, families_of, slot_of
from rpa_kernels.target import Target

# Launch order, which is the order of sequences in a batch.
ORDER = FAMILIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One kernel of a call.

    Attributes:
      family: Kernel family.
      config: Its config record.
      why: Which row or heuristic chose the config, in one line. Not part of the identity: two
        plans that launch the same are the same to `jit`.
    """

    family: str
    config: Any
    why: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchPlan:
    """The kernels that serve one step.

    Sequences of a family that the plan does not launch are served by the next one that it does:
    prefill and mixed take any length. So only a plan without mixed leaves out sequences, and is for
    steps that have none. Trees of drafts are served by decode alone.

    Attributes:
      problem: Static shapes it was made for.
      target: Limits of the chip it was made for.
      launches: Kernels in launch order.
    """

    problem: Problem
    target: Target
    launches: tuple[Launch, ...]

    def __post_init__(self) -> None:
        """Refuses what cannot be launched in turn.

        Raises:
          ValueError: A family twice, out of order, or unknown, or one for other problems.
        """
        if self.families != tuple(family for family in ORDER if family in self.families):
            raise ValueError(f"launches {self.families} are not each one of {ORDER}, in this order")
        if wrong := set(self.families) - set(families_of(self.problem)):
            served = ", ".join(families_of(self.problem))
            raise ValueError(f"{', '.join(wrong)} cannot serve this problem; {served} can")

    @property
    def families(self) -> tuple[str, ...]:
        """Families in launch order."""
        return tuple(launch.family for launch in self.launches)

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots that the families serve, in launch order."""
        return tuple(slot_of(family) for family in self.families)

    def effective_distribution(
        self, decode_end: Any, prefill_end: Any, num_seqs: Any
    ) -> tuple[Any, Any, Any]:
        """The distribution the kernels are given: which family serves what none was launched for.

        Args:
          decode_end: First entry of the caller's distribution; an int or a traced scalar.
          prefill_end: Second entry.
          num_seqs: Third entry.

        Returns:
          Three entries of the same kind.
        """
        slots = self.slots
        others_serve = {"prefill", "mixed"} & set(slots) and not self.problem.has_tree_mask
        if "decode" not in slots and others_serve:
            decode_end = 0
        if "prefill" not in slots and "mixed" in slots:
            prefill_end = decode_end
        return decode_end, prefill_end, num_seqs

    def unserved(self, distribution: tuple[int, int, int]) -> str | None:
        """Which sequences of a batch this plan would leave out, or None when it serves all."""
        d, p, n = self.effective_distribution(*distribution)
        counts = {"decode": d, "prefill": p - d, "mixed": n - p}
        left = [f"{count} {name}" for name, count in counts.items()
                if count and name not in self.slots]  # fmt: skip
        return ", ".join(left) or None
