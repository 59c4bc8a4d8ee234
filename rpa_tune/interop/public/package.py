"""A public package that kernels come from: its wheel, what it needs, its identity. No jax."""

import importlib.metadata
import platform
from dataclasses import dataclass

from rpa_tune.interop.public.wheel import Wheel


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicPackage:
    """One version of a package.

    Attributes:
      name: On PyPI.
      wheel: The file, and where it is unpacked.
      revision: Of our adapters to it. Raise it when one changes what is compiled or simulated.
      least_python: First version of Python that its kernels run on; empty for ours.
      least_jax: The same of jax.
    """

    name: str
    wheel: Wheel
    revision: int
    least_python: tuple[int, ...] = ()
    least_jax: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """Stands where our families have a digest of their sources."""
        return f"{self.name}-{self.wheel.version}/{self.revision}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} {self.wheel.version}"

    @property
    def unavailable(self) -> str:
        """Why its kernels cannot be compiled with what is installed; empty if they can."""
        found = {"Python": platform.python_version(), "jax": importlib.metadata.version("jax")}
        least = {"Python": self.least_python, "jax": self.least_jax}
        for what, needed in least.items():
            if release(found[what])[: len(needed)] < needed:
                wanted = ".".join(map(str, needed))
                return f"the kernels of {self.title} need {what} {wanted}, this is {found[what]}"
        return ""


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 11, 1) of `0.11.1.dev3`."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
