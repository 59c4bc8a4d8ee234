"""What one call launches: families and configs. Hashable, so it can be static to `jit`."""

from dataclasses import dataclass, field
from typing import Any

from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Launch order, which is the order of sequences in a batch.
ORDER = ("decode", "prefill", "mixed")


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

    Sequences of a family that the plan does not launch are served by mixed, which takes any
    length; so a used prefill slot is never dropped. Only a plan without mixed leaves out
    sequences, and is for steps that have none.

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
          ValueError: A family twice, out of order, or unknown; or prefill without decode while
            mixed would have to serve the sequences before it.
        """
        places = [ORDER.index(launch.family) for launch in self.launches]
        if places != sorted(set(places)):
            raise ValueError(f"launches {self.families} are not in the order {ORDER}")

    @property
    def families(self) -> tuple[str, ...]:
        """Families in launch order."""
        return tuple(launch.family for launch in self.launches)

    def effective_distribution(
        self, decode_end: Any, prefill_end: Any, num_seqs: Any
    ) -> tuple[Any, Any, Any]:
        """The distribution the kernels are given, so that mixed takes over what nobody serves.

        Args:
          decode_end: First entry of the caller's distribution; an int or a traced scalar.
          prefill_end: Second entry.
          num_seqs: Third entry.

        Returns:
          Three entries of the same kind.
        """
        families = self.families
        if "mixed" not in families or "prefill" in families:
            return decode_end, prefill_end, num_seqs
        if "decode" in families:
            return decode_end, decode_end, num_seqs
        return 0, 0, num_seqs

    def unserved(self, distribution: tuple[int, int, int]) -> str | None:
        """Which sequences of a batch this plan would leave out, or None when it serves all."""
        d, p, n = self.effective_distribution(*distribution)
        counts = {"decode": d, "prefill": p - d, "mixed": n - p}
        left = [f"{count} {name}" for name, count in counts.items()
                if count and name not in self.families]  # fmt: skip
        return ", ".join(left) or None
