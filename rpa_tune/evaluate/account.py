"""What a family's account says about a workload, for any config of a space.

An account walks every block of every sequence, and a search asks about hundreds of configs. Most
of what it finds for one of them holds for others: no count of bytes depends on the number of
buffers. The tuner does not know kernels, so it watches which fields an account reads.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

from rpa_kernels.batch import Batch, BatchArrays
from rpa_kernels.cores import Core
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.families.family import Family
from rpa_tune.hw.chip import Chip
from rpa_tune.workload.workload import Workload

T = TypeVar("T")

# Studies that run side by side ask in turn. An account of a large space takes a few MB.
_KEPT_ACCOUNTS = 64


class ByFieldsRead(Generic[T]):
    """A pure function of a config, computed once for all configs that it cannot tell apart.

    Configs with the same values in the fields that were read for one of them have the same result.
    Which fields are read may depend on the values of others, so each set that was ever read is
    looked up.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        """Computes nothing yet.

        Args:
          function: Reads attributes of its argument and nothing else of it.
        """
        self._function = function
        self._results: dict[tuple[str, ...], dict[tuple[Any, ...], T]] = {}

    def __call__(self, config: Any) -> T:
        """The function's result."""
        for names, results in list(self._results.items()):
            values = tuple(getattr(config, name) for name in names)
            if values in results:
                return results[values]
        watched = _Watched(config)
        result = self._function(watched)
        names = tuple(sorted(watched.fields_read))
        values = tuple(getattr(config, name) for name in names)
        self._results.setdefault(names, {})[values] = result
        return result


class _Watched:
    """Stands in for a config, and notes which of its fields are read, in `fields_read`.

    What would read fields unnoticed is refused: `kernels/family.py` says what an account may do.
    """

    def __init__(self, config: Any) -> None:
        self.__dict__.update(_config=config, fields_read=set())

    def _refuse(self, *_: object) -> Any:
        raise TypeError(
            f"an account may only read attributes of a {type(self._config).__name__}: "
            "rpa_kernels/family.py says why"
        )

    __hash__ = __eq__ = __setattr__ = _refuse
    __copy__ = __deepcopy__ = __reduce_ex__ = _refuse

    def __getattr__(self, name: str) -> Any:
        """Only for what this object has not: accounts read fields in their innermost loops."""
        self.fields_read.add(name)
        self.__dict__[name] = value = getattr(self._config, name)
        return value


class WorkloadAccount:
    """Bytes, FLOPs and steps of one launch, for the batches of a workload; see `account_of`.

    Attributes:
      traffic: Config -> what the DMAs move: for each batch, each core's.
      mxu_flops: Config -> FLOPs that the MXUs execute, likewise.
      num_steps: Config -> KV-block steps, likewise.
    """

    def __init__(self, family: Family, problem: Problem, chip: Chip, own: Workload) -> None:
        """Asks the account for nothing yet; `own` has only batches that launch the family."""
        self._family, self._problem, self._chip = family, problem, chip
        target, cores = chip.target, family.cores(chip)
        batches = [_LaidOut.of(weighted.batch) for weighted in own.batches]
        self._weights = [weighted.weight for weighted in own.batches]
        self._useful_bytes = self.mean([family.useful_bytes(problem, b) for b in batches])
        self._useful_flops = self.mean([family.useful_flops(problem, b) for b in batches])

        def for_each(count: Callable[[Any, Batch, Core], T]) -> ByFieldsRead[list[list[T]]]:
            return ByFieldsRead(
                lambda config: [[count(config, batch, core) for core in cores] for batch in batches]
            )

        self.traffic = for_each(lambda c, batch, core: family.traffic(problem, c, batch, core))
        self.num_steps = for_each(lambda c, batch, core: family.num_steps(problem, c, batch, core))
        self.mxu_flops = for_each(
            lambda c, batch, core: family.mxu_flops(problem, c, batch, target, core)
        )

    def mean(self, values: Sequence[float]) -> float:
        """Mean of per-batch figures over launches."""
        return weighted_mean(values, self._weights)

    def mean_traffic(self, config: Any) -> dict[str, float]:
        """Bytes and copies of one launch, mean over the workload."""
        moved = [functools.reduce(operator.add, cores) for cores in self.traffic(config)]
        return {
            "hbm_bytes": self.mean([t.total_bytes for t in moved]),
            "hbm_read_bytes": self.mean([t.read_bytes for t in moved]),
            "hbm_write_bytes": self.mean([t.write_bytes for t in moved]),
            "num_copies": self.mean([t.num_copies for t in moved]),
        }

    def memory(self, config: Any) -> dict[str, int]:
        """Bytes of scratch in each memory of a core."""
        family, problem = self._family, self._problem
        return {
            "vmem_bytes": family.scratch_bytes(problem, config, self._chip.target),
            "smem_bytes": family.smem_bytes(problem, config),
        }

    def utilization(self, time_us: float) -> dict[str, float]:
        """MBU and MFU of a mean time over the workload.

        `mbu` is the bytes that no kernel could avoid moving, over what the nominal HBM bandwidth
        could move in that time. `mfu` is the attention's own FLOPs (causal positions only, both
        matmuls, 2 FLOPs a multiply-add), over what the MXUs could do at their bfloat16 peak. Both
        are ratios of means: total useful work over total time, of all TensorCores of a device.

        Args:
          time_us: Weighted mean time of one launch.
        """
        seconds = time_us * 1e-6 * self._chip.num_cores_per_device
        return {
            "mbu": self._useful_bytes / seconds / self._chip.hbm_bytes_per_s,
            "mfu": self._useful_flops / seconds / self._chip.bf16_flops_per_s,
        }


def account_of(candidate: Candidate, own: Workload) -> WorkloadAccount:
    """The account that a candidate shares with all others of its study.

    Args:
      candidate: Of any config.
      own: Only batches that launch the candidate's family.
    """
    return _account(candidate.family, candidate.problem, candidate.chip, own)


_account = functools.lru_cache(maxsize=_KEPT_ACCOUNTS)(WorkloadAccount)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of per-batch figures over launches."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def batches_and_weights(workload: Workload) -> tuple[list[Batch], list[float]]:
    """The batches of a workload and their weights, apart."""
    return [wb.batch for wb in workload.batches], [wb.weight for wb in workload.batches]


class _LaidOut(Batch):
    """A batch that lays out its arrays once: on two cores an account reads them for each config."""

    @classmethod
    def of(cls, batch: Batch) -> "_LaidOut":
        return cls(**{field.name: getattr(batch, field.name) for field in fields(batch)})

    def arrays(self, problem: Problem) -> BatchArrays:
        return _arrays(self, problem)


@functools.lru_cache(maxsize=256)
def _arrays(batch: Batch, problem: Problem) -> BatchArrays:
    return Batch.arrays(batch, problem)
