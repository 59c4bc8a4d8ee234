"""One row of a table: a key, the configs to compile for it, the rule that picks one, evidence.

The rule is a short decision list, readable in the file: the first clause that holds for the
step's lengths names the config; the last clause always holds. A row of one config has the rule
`[{"use": 0}]`.
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from rpa_kernels.layout import KV_LAYOUTS
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.libtpu_args import parse_args
from rpa_tune.tables.key import ADDED_FIELDS, TuningKey
from rpa_tune.tables.other_versions import check_other_versions
from rpa_tune.tables.step import FEATURES, Lengths
from rpa_tune.tables.values import MAX_INTEGER, check_finite, check_names, check_range, mapping

SCHEMA = "rpa-table/4"  # older ones: `migrate.py`
FIDELITIES = ("analytical", "simulated", "measured")
TUNED, HEURISTIC = "tuned", "heuristic"  # verdicts
MAX_CONFIGS = 8  # a serving engine compiles every one of them for every bucket
MAX_RUNNERS_UP = 3
MAX_CLAUSES = 32  # of a rule that is meant to be read
# Numbers of the evidence, with the most that each can be.
_MOST = dict.fromkeys(
    ("time_us", "heuristic_us", "error_pct", "regret_pct", "num_candidates"), MAX_INTEGER
) | {"share_of_wins": 1}
_DAY = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
# Sizes of a key that are 0 without what they measure.
_ZERO_WITHOUT = ("sliding_window_tokens", "attention_chunk_tokens", "rope_dim", "kv_packing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """One line of a rule.

    Attributes:
      feature: One of `step.FEATURES`, or empty for the last clause, which always holds.
      at_most: The clause holds while the feature is at or below this.
      use: Index into the row's configs.
    """

    use: int
    feature: str = ""
    at_most: int = 0

    def holds(self, lengths: Lengths) -> bool:
        """Whether this clause decides for a step with these lengths."""
        return not self.feature or getattr(lengths, self.feature) <= self.at_most

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        if not self.feature:
            return {"use": self.use}
        return {"if": self.feature, "at_most": self.at_most, "use": self.use}


ALWAYS_FIRST = (Clause(use=0),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Why a row says what it says.

    Attributes:
      verdict: `tuned` when the configs beat the heuristic by more than the evaluator's own
        error, and under nearly all sets of the simulator's parameters, else `heuristic`: the row
        then pins the heuristic's config.
      fidelity: `analytical`, `simulated` or `measured`.
      time_us: Expected time of one launch over the workload with this row, microseconds.
      heuristic_us: The same with the heuristic's config; None in old rows where it had no time,
        which lint refuses.
      error_pct: The evaluator's own error that the decision allowed for, percent.
      regret_pct: Expected loss against choosing the best known config for every batch, percent.
      regret_by_num_configs_pct: The same for the best rule of at most 1, 2, 3, ... configs; ends
        where more gain nothing. Empty when it was not worked out.
      bound_by: What bounds the first config.
      workload: Name of the workload.
      workload_source: Where its batches come from.
      workload_digest: Its identity.
      num_candidates: Configs that were evaluated at this fidelity.
      verified: How every config was compared with the reference; empty when none was.
      kernel_digest: Source digest of the kernel family.
      schedule_digest: Digest of the compiled schedules of the configs; empty when not known.
      problem: What the key does not say of the problem that was timed (`key.beyond_key`); None
        when not known.
      jax: Version that compiled it.
      libtpu: Version that compiled it.
      date: UTC day, `YYYY-MM-DD`.
      interval_us: Where nine of ten sets of the simulator's parameters put the time of the first
        config; None when it was not simulated under them.
      runners_up: The next best configs of the study, best first, as `{"config": {...}, "time_us":
        ...}`: another compiler may prefer one (`tables check`). A file has the field only where
        there are some.
      libtpu_args: Flags that the compiler was given (`libtpu_args.py`); a file has the field only
        where there were some.
      heuristic: The config that `heuristic_us` is of, the default when the row was made; see
        `TableRow.heuristic`. A file has the field only where the row does not pin that config.
      share_of_wins: Of those sets, the share under which the tuned config, or else the best one
        that was found, beats the heuristic; a tie is half a win. None as well.
      other_versions: What `tables check --write` found under other jax and libtpu
        (`other_versions.py`); a file has the field only where there is some.
    """

    verdict: str
    fidelity: str
    time_us: float
    heuristic_us: float | None
    error_pct: float
    regret_pct: float
    bound_by: str
    workload: str
    workload_source: str
    workload_digest: str
    num_candidates: int
    verified: str
    kernel_digest: str
    jax: str
    libtpu: str
    date: str
    regret_by_num_configs_pct: tuple[float, ...] = ()
    schedule_digest: str = ""
    problem: dict[str, Any] | None = None
    interval_us: tuple[float, float] | None = None
    share_of_wins: float | None = None
    libtpu_args: str = ""
    runners_up: tuple[dict[str, Any], ...] = ()
    heuristic: dict[str, int] | None = None
    other_versions: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        data = asdict(self) | {
            "regret_by_num_configs_pct": list(self.regret_by_num_configs_pct),
            "interval_us": self.interval_us and list(self.interval_us),
        }
        data["runners_up"] = list(self.runners_up)
        data["other_versions"] = list(self.other_versions)
        # Older files stay as they are.
        for name in ("libtpu_args", "runners_up", "heuristic", "other_versions"):
            if not data[name]:
                del data[name]
        return data

    @property
    def speedup(self) -> float | None:
        """Heuristic's time over this row's, or None without one."""
        return None if self.heuristic_us is None else self.heuristic_us / self.time_us


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One row.

    Attributes:
      key: What it is looked up by.
      configs: Config fields by name, most used first.
      rule: Which of them a step uses.
      evidence: Why.
      where: `file:line` it was read from; empty for a new row. Not part of its identity.
    """

    key: TuningKey
    configs: tuple[dict[str, int], ...]
    rule: tuple[Clause, ...]
    evidence: Evidence
    where: str = ""

    def pick(self, lengths: Lengths) -> int:
        """Index of the config for a step with these lengths."""
        for clause in self.rule:
            if clause.holds(lengths):
                return clause.use
        raise AssertionError("the last clause of a rule always holds")

    @property
    def heuristic(self) -> dict[str, int] | None:
        """Config that it was compared with, today's default or not; None if an old row is silent.

        A kernel's digest does not cover its default (`provenance.kernel_digest`).
        """
        return self.configs[0] if self.evidence.verdict == HEURISTIC else self.evidence.heuristic

    def to_dict(self) -> dict[str, Any]:
        """JSON form, chip and family left to the file's header."""
        return {
            "key": self.key.to_dict(),
            "configs": list(self.configs),
            "rule": [clause.to_dict() for clause in self.rule],
            "evidence": self.evidence.to_dict(),
        }


def row_from_dict(data: Any, *, chip: str, family: str, where: str = "") -> TableRow:
    """Reads the JSON form.

    Raises:
      ValueError: A field is missing, unknown or of the wrong type; the message names it.
    """
    check_names("row", data, {"key", "configs", "rule", "evidence"})
    key = key_from_dict(data["key"], chip=chip, family=family)
    evidence = _evidence(mapping("evidence", data["evidence"]))
    configs = _configs(data["configs"])
    return TableRow(
        key=key,
        configs=configs,
        rule=_rule(data["rule"], num_configs=len(configs)),
        evidence=evidence,
        where=where,
    )


def key_from_dict(data: Any, *, chip: str, family: str) -> TuningKey:
    """Reads the JSON form of a key.

    Raises:
      ValueError: As `row_from_dict`.
    """
    stated = {**ADDED_FIELDS, **mapping("key", data), "chip": chip, "family": family}
    key: TuningKey = _record(TuningKey, "key", stated)
    _check_sizes(key)
    return key


def _check_sizes(key: TuningKey) -> None:
    """A row that a look-up could not even be compared with is refused here, not at serving time."""
    for name, hint in _HINTS[TuningKey].items():
        least = 0 if name in _ZERO_WITHOUT else 1
        if hint is int and not least <= getattr(key, name) <= MAX_INTEGER:
            raise ValueError(f"key.{name}={getattr(key, name)} is not in {least}..{MAX_INTEGER}")
    if key.kv_layout not in KV_LAYOUTS:
        raise ValueError(f"key.kv_layout={key.kv_layout!r} is not one of {KV_LAYOUTS}")


def _evidence(data: dict[str, Any]) -> Evidence:
    regrets = data.get("regret_by_num_configs_pct")
    if not isinstance(regrets, list) or len(regrets) > MAX_CONFIGS:
        raise ValueError(f"evidence.regret_by_num_configs_pct must be a list to {MAX_CONFIGS}")
    for i, regret in enumerate(regrets):
        check_range(f"evidence.regret_by_num_configs_pct[{i}]", regret)
    _check_problem(data.get("problem"))
    span = data.get("interval_us")
    if span is not None:
        _check_interval(span)
    changed = {"regret_by_num_configs_pct": tuple(regrets), "interval_us": span and tuple(span)}
    runners_up = data.get("runners_up", [])
    _check_runners_up(runners_up)
    stated = {"libtpu_args": "", "heuristic": None, **data, **changed}
    stated["runners_up"] = tuple(runners_up)
    found = data.get("other_versions", [])
    check_other_versions(found)
    stated["other_versions"] = tuple(found)
    evidence: Evidence = _record(Evidence, "evidence", stated)
    _check_libtpu_args(evidence.libtpu_args)
    if evidence.heuristic is not None:
        _check_config("evidence.heuristic", evidence.heuristic)
    if evidence.verdict not in (TUNED, HEURISTIC):
        raise ValueError(f"evidence.verdict={evidence.verdict!r} is not tuned or heuristic")
    if evidence.fidelity not in FIDELITIES:
        raise ValueError(f"evidence.fidelity={evidence.fidelity!r} is not one of {FIDELITIES}")
    for name, most in _MOST.items():
        value = getattr(evidence, name)
        if value is not None:
            check_range(f"evidence.{name}", value, most)
    if not _DAY.fullmatch(evidence.date):
        raise ValueError(f"evidence.date={evidence.date!r:.40} is no day YYYY-MM-DD")
    return evidence


def _check_runners_up(data: Any) -> None:
    """A few configs with their times; whether they can exist is found out when they are asked."""
    if not isinstance(data, list) or len(data) > MAX_RUNNERS_UP:
        raise ValueError(f"evidence.runners_up must be a list to {MAX_RUNNERS_UP}")
    for i, one in enumerate(data):
        check_names(f"evidence.runners_up[{i}]", one, {"config", "time_us"})
        _configs([one["config"]])
        check_range(f"evidence.runners_up[{i}].time_us", one["time_us"])


def _check_libtpu_args(text: str) -> None:
    """Flags as they are kept, or two spellings of the same would be two sets."""
    try:
        kept = parse_args(text)
    except UsageError as error:
        raise ValueError(f"evidence.libtpu_args={text!r:.60}: {error.args[0]}") from error
    if kept != text:
        raise ValueError(f"evidence.libtpu_args={text!r:.60} must be written {kept!r:.60}")


def _check_interval(data: Any) -> None:
    """Two times, the lower one first."""
    if not isinstance(data, list) or len(data) != 2:
        raise ValueError(f"evidence.interval_us={data!r:.40} is not a list of two times")
    for value in data:
        check_finite("evidence.interval_us", value)
    if not 0 < data[0] <= data[1]:
        raise ValueError(f"evidence.interval_us={data!r:.60} is no interval above zero")


def _check_problem(data: Any) -> None:
    """Plain values of known fields; whether they make a problem of the key is lint's question."""
    for name, value in mapping("evidence.problem", data or {}).items():
        if name not in _PROBLEM_FIELDS:
            raise ValueError(f"evidence.problem.{name:.40} is no field of a problem")
        if type(value) in (int, float):
            check_finite(f"evidence.problem.{name}", value)
        elif value is not None and type(value) not in (str, bool):
            raise ValueError(f"evidence.problem.{name}={value!r:.40} is not a plain value")


def _configs(data: Any) -> tuple[dict[str, int], ...]:
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_CONFIGS:
        raise ValueError(f"configs must be a list of 1 to {MAX_CONFIGS}")
    for i, config in enumerate(data):
        _check_config(f"configs[{i}]", config)
    return tuple(data)


def _check_config(what: str, data: Any) -> None:
    for name, value in mapping(what, data).items():
        if type(value) is not int:
            raise ValueError(f"{what}.{name}={value!r} is not an integer")
        if not 0 <= value <= MAX_INTEGER:
            raise ValueError(f"{what}.{name}={value!r:.40} is not in 0..{MAX_INTEGER}")


def _rule(data: Any, *, num_configs: int) -> tuple[Clause, ...]:
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_CLAUSES:
        raise ValueError(
            f"rule must be a list of 1 to {MAX_CLAUSES} that ends with an unconditional clause"
        )
    clauses = []
    for i, item in enumerate(data):
        is_last = i == len(data) - 1
        check_names(f"rule[{i}]", item, {"use"} if is_last else {"if", "at_most", "use"})
        if type(item["use"]) is not int or not 0 <= item["use"] < num_configs:
            raise ValueError(f"rule[{i}].use={item['use']!r} names none of {num_configs} configs")
        if not is_last and item["if"] not in FEATURES:
            raise ValueError(f"rule[{i}].if={item['if']!r} is not one of {FEATURES}")
        if not is_last and type(item["at_most"]) is not int:
            raise ValueError(f"rule[{i}].at_most={item['at_most']!r} is not an integer")
        clauses.append(
            Clause(use=item["use"], feature=item.get("if", ""), at_most=item.get("at_most", 0))
        )
    return tuple(clauses)


# Resolved once: `get_type_hints` on every row would dominate the time to load a table.
_HINTS = {record: get_type_hints(record) for record in (TuningKey, Evidence)}
KEY_HINTS: dict[str, type] = _HINTS[TuningKey]
_PROBLEM_FIELDS = {field.name for field in fields(Problem)}
_ACCEPTS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    float: (float, int),
    float | None: (float, int, type(None)),
    dict[str, Any] | None: (dict, type(None)),
    dict[str, int] | None: (dict, type(None)),
    tuple[float, ...]: (tuple,),
    tuple[dict[str, Any], ...]: (tuple,),
    tuple[float, float] | None: (tuple, type(None)),
}


def _record(record: type[Any], what: str, data: dict[str, Any]) -> Any:
    """Builds a flat record, checking the name and type of every field."""
    check_names(what, data, set(_HINTS[record]))
    for name, hint in _HINTS[record].items():
        if type(data[name]) not in _ACCEPTS[hint]:
            raise ValueError(f"{what}.{name}={data[name]!r} is not of type {hint}")
    return record(**data)
