"""The words that evaluators, store and sweep share: what is evaluated, and one answer.

A `Candidate` is everything that decides an answer except the evaluator; its `digest` is its
identity in the store. An `Evaluation` is one evaluator's answer; a bad config is an answer too.
"""

import enum
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_kernels.problem import Problem
from rpa_tune.families.family import Family
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import Chip, load_chips
from rpa_tune.libtpu_args import parse_args


class Fidelity(enum.IntEnum):
    """How an answer was got; a higher one is dearer and nearer the truth."""

    ANALYTICAL = 0
    SIMULATED = 1
    MEASURED = 2


class Correctness(enum.Enum):
    """How it was found out whether a config is right: no time, so no fidelity and no rung."""

    INTERPRETED = "interpreted"


Method = Fidelity | Correctness


def method_of(name: str) -> Method:
    """The one that stores and JSON call by its name in lower case.

    Raises:
      ValueError: There is none.
    """
    known: tuple[Method, ...] = (*Fidelity, *Correctness)
    for method in known:
        if method.name.lower() == name:
            return method
    raise ValueError(f"{name!r:.40} is no fidelity, and no way to verify")


class Status(enum.StrEnum):
    """How an evaluation ended. Everything but OK carries a one-line `detail`."""

    OK = "ok"
    INFEASIBLE = "infeasible"
    COMPILE_FAILED = "compile_failed"
    COMPILE_TIMEOUT = "compile_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    NOT_UNDERSTOOD = "not_understood"
    WRONG_ANSWER = "wrong_answer"
    RUN_FAILED = "run_failed"
    RUN_TIMEOUT = "run_timeout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One config of one kernel for one problem on one chip, judged on one workload.

    Attributes:
      family: Kernel family.
      problem: Static shapes and dtypes.
      config: The family's config record.
      chip: Where it runs.
      workload: `Workload.digest`: the batches that it is judged on.
      libtpu_args: Flags that the compiler is given; see `libtpu_args.py`.
    """

    family: Family
    problem: Problem
    config: Any
    chip: Chip
    workload: str
    libtpu_args: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` reads it back."""
        return {
            "family": self.family.name,
            "problem": self.problem.to_dict(),
            "config": config_to_dict(self.config),
            "chip": self.chip.name,
            "workload": self.workload,
            **self._flags(),
        }

    def _flags(self) -> dict[str, str]:
        """JSON form of the flags; without any a candidate is what it was before there were some."""
        return {"libtpu_args": self.libtpu_args} if self.libtpu_args else {}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Candidate":
        """Reads the JSON form.

        Raises:
          ValueError, KeyError, TypeError: The data is not a candidate.
        """
        family, chip = load_family(data["family"]), load_chips().get(data["chip"])
        if chip is None:
            raise ValueError(f"unknown chip {data['chip']!r:.40}")
        return cls(
            family=family,
            problem=Problem(**data["problem"]),
            config=family.config_from_dict(data["config"]),
            chip=chip,
            workload=data["workload"],
            libtpu_args=parse_args(data.get("libtpu_args", "")),
        )

    @property
    def title(self) -> str:
        """What its study is about, for people: not all of it, so that two may have one title."""
        problem = self.problem
        reach = f", {problem.reach_text}" if problem.reach_text else ""
        kv_layout = f", {problem.kv_layout}" if problem.is_seq_along_lane else ""
        heads = f"{problem.num_q_heads}/{problem.num_kv_heads} heads of {problem.head_dim}"
        return (
            f"{self.chip.name}/{self.family.name}, {heads}, "
            f"{problem.kv_dtype}, page {problem.page_size}{kv_layout}{reach}"
        )

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON form."""
        return _digest(self.to_dict())

    @property
    def study(self) -> str:
        """The same of all but the config: candidates of one study have it in common."""
        parts = {
            "family": self.family.name, "chip": self.chip.name, "workload": self.workload,
            **self._flags(),
        }  # fmt: skip
        return _digest({**parts, "problem": self.problem.to_dict()})


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluator's answer about one candidate.

    Attributes:
      candidate: What was asked.
      fidelity: How it was answered; a `Correctness` says right or wrong, and has no time.
      status: OK, or why there is no time.
      detail: One line; empty when OK.
      time_us: Expected device time of one launch over the workload (weighted mean) in
        microseconds, or None without an answer, and always from a `Correctness`.
      batch_us: Time of each of the workload's batches, in its order.
      metrics: Plain JSON values beside the time: `total_cycles`, `cycles_by_owner`, `mbu`,
        `mfu`, `bound_by`, `hbm_bytes`, `vmem_bytes`, `compile_s`, `unknown`, `guesses`, ...
      provenance: Versions, kernel digest, host and time; see `provenance.py`.
    """

    candidate: Candidate
    fidelity: Method
    status: Status
    detail: str = ""
    time_us: float | None = None
    batch_us: tuple[float, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def rung(self) -> Fidelity:
        """The fidelity, of an answer that is about time.

        Raises:
          ValueError: It says whether a config is right.
        """
        if not isinstance(self.fidelity, Fidelity):
            raise ValueError(f"{self.fidelity.name.lower()} is no fidelity")
        return self.fidelity

    @property
    def ok(self) -> bool:
        """Whether there is a time."""
        return self.status is Status.OK
