"""What the tuner asks of a kernel family, ours or a public one. No jax.

`rpa_kernels.family.KernelFamily` says what a kernel is: configs, limits, accounts. A `Family` adds
what the tuner does with it: compile, read its scalars, hold a schedule against its account. Where
families differ they override a method or an attribute; nothing asks where one comes from.
"""

import abc
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.cores import Core, cores_of
from rpa_kernels.family import KernelFamily, Traffic
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import Chip


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A function to compile for the sake of one Pallas call in it.

    Attributes:
      function: Takes `arguments`.
      arguments: Abstract arrays (`jax.ShapeDtypeStruct`), without sharding.
      kernel_name: `name=` of the Pallas call.
      more_names: The same of further calls that are of interest.
      donated: Positions of arguments that the function may overwrite.
      context: Within which it is traced and compiled.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    kernel_name: str
    more_names: tuple[str, ...] = ()
    donated: tuple[int, ...] = ()
    context: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True, kw_only=True, slots=True)
class Executed:
    """What a simulated schedule did for one batch.

    Attributes:
      traffic: What its DMAs moved.
      mxu_busy_cycles: Cycles of all its MXUs.
    """

    traffic: Traffic
    mxu_busy_cycles: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Family(KernelFamily, abc.ABC):
    """A kernel family as the sweep, the store and the tables know it.

    There is one object of each name: it is equal to itself alone, and pickled it is its name.

    Attributes:
      slots: Which sequences of a batch it serves: some of `decode`, `prefill` and `mixed`.
      is_launched: Whether the dispatcher can launch it; only what can be launched is measured.
      unverified: What it is, if its configs are not compared with the reference; empty if they are.
      most_configs: Configs that whoever reads its rows can use for one problem; None: all of them.
      is_latent: Whether it serves layers with latents (MLA), and no others.
    """

    slots: tuple[str, ...]
    is_launched: bool
    unverified: str
    most_configs: int | None
    is_latent: bool = False

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Of the kernel's sources, or of the package they come from: what makes answers stale."""

    @property
    def unavailable(self) -> str:
        """Why it cannot be compiled with what is installed; empty if it can."""
        return ""

    @abc.abstractmethod
    def fetch(self, cache: Path) -> None:
        """Has everything there that the kernel needs beside what is installed.

        Args:
          cache: Folder of the compile cache.

        Raises:
          UsageError: It could not be had.
        """

    @abc.abstractmethod
    def call(self, problem: Problem, config: Any, chip: Chip) -> Call:
        """What to compile for a config. For a worker process: loads jax.

        Raises:
          Exception: What the kernel's own code raises.
        """

    @abc.abstractmethod
    def scalar_operands(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch
    ) -> Mapping[int, Any]:
        """The int32 arrays that a launch reads for a batch, by operand index.

        Raises:
          UsageError: The function makes no such launch.
        """

    def shipped_configs(self) -> Iterable[tuple[str, Problem, Any]]:
        """(chip, problem, config) that others tuned and shipped: where searches start; mostly none.

        Raises:
          UsageError: What was shipped is damaged.
        """
        return ()

    def kernel_names(self, problem: Problem, config: Any) -> tuple[str, ...]:
        """`name=` of each Pallas call that serves the family's sequences, in order; mostly one."""
        return (self.kernel_name(problem, config),)

    def launches(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch
    ) -> tuple[Mapping[int, Any], ...]:
        """`scalar_operands` of each of `kernel_names`.

        Raises:
          UsageError: The function makes no such launch.
        """
        return (self.scalar_operands(problem, config, chip, batch),)

    @abc.abstractmethod
    def find_mismatch(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch, executed: Executed
    ) -> str:
        """Where a simulation cannot be that of the kernel; empty if nowhere.

        A difference means that the kernel, the account, the parser or the simulator is wrong, so
        no time that rests on them can be trusted.
        """

    def __eq__(self, other: object) -> bool:
        """Whether it is this very family."""
        return self is other

    def __hash__(self) -> int:
        """Of its name."""
        return hash(self.name)

    def __repr__(self) -> str:
        """Its name: what it holds are functions."""
        return f"<family {self.name}>"

    def cores(self, chip: Chip) -> tuple[Core, ...]:
        """The TensorCores that a launch uses: all of a device, or one for a kernel of one core."""
        return cores_of(chip.num_cores_per_device if self.partition is not None else 1)
