"""The kernel families of `rpa_kernels`: exact accounts, launched by the dispatcher. No jax."""

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rpa_kernels import load_family, runs
from rpa_kernels.batch import Batch
from rpa_kernels.family import KernelFamily, Traffic
from rpa_kernels.problem import Problem
from rpa_kernels.slots import is_latent, slot_of
from rpa_tune.families.family import Call, Executed, Family
from rpa_tune.hw.chip import Chip
from rpa_tune.provenance import kernel_digest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class OwnFamily(Family):
    """A family of ours; see `own_family`."""

    @property
    def digest(self) -> str:
        """Of the sources that its launch is made of."""
        return kernel_digest(self.name)

    def fetch(self, cache: Path) -> None:
        """Nothing: it is installed."""

    def call(self, problem: Problem, config: Any, chip: Chip) -> Call:
        """The attention call from public arrays to public arrays."""
        from rpa_tune.families.own_call import own_call  # here, because it loads jax

        return own_call(self, problem, config, chip.target)

    def scalar_operands(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch
    ) -> Mapping[int, Any]:
        """Four arrays in the order of `rpa_kernels.calls`, on two cores the split, a tree mask."""
        arrays = batch.arrays(problem)
        page_runs = runs.pack(arrays, problem)
        found = [arrays.kv_lens, page_runs, arrays.cu_q_lens, arrays.distribution]
        num_cores = len(self.cores(chip))
        if self.partition is not None and num_cores > 1:
            found.append(self.partition(problem, config, arrays, num_cores))
        if problem.has_tree_mask:  # no time depends on what it says
            found.append(np.zeros(problem.max_num_tokens, np.int32))
        return dict(enumerate(found))

    def find_mismatch(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch, executed: Executed
    ) -> str:
        """Where a simulation differs from the account.

        Copies must be equal, and matmuls no fewer than the account's FLOPs need: a kernel that
        skips work copies all the same.
        """
        account = self.launch_traffic(problem, config, chip, batch)
        if executed.traffic != account:
            moved = _figures(executed.traffic)
            return f"schedule moves {moved}, account says {_figures(account)}"
        most = _most_mxu_flops(chip, executed.mxu_busy_cycles)
        least = self.launch_mxu_flops(problem, config, chip, batch)
        if most < least:
            return (
                f"schedule multiplies at most {most:,} FLOPs, account says {least:,}: "
                "work is skipped"
            )
        return ""

    def launch_traffic(self, problem: Problem, config: Any, chip: Chip, batch: Batch) -> Traffic:
        """What the account says the DMAs of all cores move for one batch."""
        shares = [self.traffic(problem, config, batch, core) for core in self.cores(chip)]
        return functools.reduce(operator.add, shares)

    def launch_mxu_flops(self, problem: Problem, config: Any, chip: Chip, batch: Batch) -> int:
        """What the account says the MXUs of all cores execute for one batch."""
        cores, target = self.cores(chip), chip.target
        return sum(self.mxu_flops(problem, config, batch, target, core) for core in cores)


def own_family(name: str) -> OwnFamily:
    """The family of a folder of `rpa_kernels`.

    Raises:
      ValueError: There is none.
    """
    record = load_family(name)
    return OwnFamily(
        **{field.name: getattr(record, field.name) for field in fields(KernelFamily)},
        slots=(slot_of(name),),
        is_launched=True,
        unverified="",
        most_configs=None,
        is_latent=is_latent(name),
    )


def _most_mxu_flops(chip: Chip, busy_cycles: float) -> int:
    """FLOPs of the matmuls that were executed, had each used every row and column of its MXU."""
    rows = busy_cycles * chip.value("mxu_rows_per_cycle")
    return round(2 * rows * chip.value("mxu_size") ** 2)


def _figures(traffic: Traffic) -> str:
    return (
        f"{traffic.read_bytes:,} bytes in and {traffic.write_bytes:,} out "
        f"in {traffic.num_copies:,} copies"
    )
