"""Rows whose kernel has other sources and the same schedules: today's digest, once that is proven.

A row names its kernel by a digest of source text, so a rename or a comment makes it stale. What was
timed is still what the chip would run if the compiler makes the same schedules of today's sources.
That is asked here, with the jax and libtpu of the row. `cli/restamp.py` is the command.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.recheck import (
    UNANSWERED,
    RowCheck,
    ask,
    family_of,
    older_versions,
    refusal,
    remake,
)
from rpa_tune.sweep.study import Study
from rpa_tune.tables.lint import Finding
from rpa_tune.tables.row import HEURISTIC, TableRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Restamp:
    """What became of one row.

    Attributes:
      row: As it stands in the table.
      new: With today's kernel digest; None when it was not proven, or is not needed.
      findings: Why it was not proven. Their rules: `versions` (made with another jax or libtpu),
        `digest` (the row has none of its schedules), `schedule`, `heuristic` (what the row was
        compared with takes another time), `wrong` (the interpreter objects), and those of
        `recheck.RowCheck`.
    """

    row: TableRow
    new: TableRow | None = None
    findings: tuple[Finding, ...] = ()


def find_obstacle(row: TableRow) -> Restamp | None:
    """What can be said of a row without compiling: it is current, or cannot be proven; or None."""
    try:
        load_chip(row.key.chip)
        family_of(row)
    except UsageError as error:
        return left(row, "remake", str(error.args[0]))
    older = older_versions(row)
    if "kernel_digest" not in older:
        return Restamp(row=row)
    others = [
        f"{name} {older[name][0] or '?'}, and {older[name][1] or 'none'} is installed"
        for name in ("jax", "libtpu")
        if name in older
    ]
    if others:
        return left(row, "versions", f"made with {'; '.join(others)}")
    if not row.evidence.schedule_digest:
        return left(row, "digest", "the row has no digest of its schedules: sweep again")
    return None


def restamp(
    row: TableRow,
    oracle: Oracle,
    plans: Sequence[SweepPlan] = (),
    *,
    verify: bool = True,
    libtpu_args: str = "",
) -> Restamp:
    """The row with today's kernel digest, if today's kernel is what it was tuned with.

    Proven is that the compiler makes the same schedules of the row's configs, that time and rank
    follow from them as the row says, and that what it was compared with takes the same time. A row
    that says that its configs were verified has them verified again: what the interpreter runs is
    not the schedule. Its text then says how today; all else stays.

    Args:
      row: Its `where` must be its own.
      oracle: Simulates and, with `verify`, interprets.
      plans: See `recheck.remake`.
      verify: Run the interpreter.
      libtpu_args: Flags that the oracle's compiler is given.

    Raises:
      BudgetSpentError, StoppedError: See `Oracle.ask`.
    """
    if (known := find_obstacle(row)) is not None:
        return known
    check = ask(row, oracle, plans, libtpu_args)
    if check.findings:
        findings = [_named(found, row) for found in check.findings]
        return Restamp(row=row, findings=tuple(findings))
    if check.schedule != "same":
        return left(row, "schedule", "today's compile has no digest to compare")
    study = remake(row, plans)
    if message := _other_comparison(check):
        return left(row, "heuristic", message)
    verified = row.evidence.verified
    if verify and verified:
        verified, wrong = _verify(row, oracle, study)
        if wrong:
            return Restamp(row=row, findings=wrong)
    evidence = replace(row.evidence, kernel_digest=study.family.digest, verified=verified)
    return Restamp(row=row, new=replace(row, evidence=evidence))


def _named(found: Finding, row: TableRow) -> Finding:
    """The finding, saying whose schedule has changed as far as the row can tell."""
    if found.rule != "schedule":
        return found
    if len(row.configs) == 1:
        config = ", ".join(f"{name}={value}" for name, value in row.configs[0].items())
        whose = f"configs[0] ({config})"
    else:
        whose = f"at least one of {len(row.configs)} configs (the row has one digest for all)"
    return replace(found, message=f"{whose} has {found.message}")


def _other_comparison(check: RowCheck) -> str:
    """How the time has changed of what the verdict rests on; empty if it has not.

    A row keeps no digest of that schedule, so it is the time, up to the evaluator's error. Where
    the row pins what it was compared with, that is the row's own config. An old row does not say
    which config it was: then it must have been today's heuristic.
    """
    evidence = check.row.evidence
    if evidence.verdict == HEURISTIC:
        return ""
    if check.compared_us is None or evidence.heuristic_us is None:
        return "the heuristic has no time to compare"
    change_pct = 100 * (check.compared_us / evidence.heuristic_us - 1)
    if abs(change_pct) <= evidence.error_pct:
        return ""
    times = f"{evidence.heuristic_us:,.1f} us then, {check.compared_us:,.1f} us now"
    whose = "the heuristic of its day" if check.row.heuristic else "the heuristic"
    return f"{whose} takes {times} ({change_pct:+.1f} %)"


def _verify(row: TableRow, oracle: Oracle, study: Study) -> tuple[str, tuple[Finding, ...]]:
    """How every config was verified, and what the interpreter objects to."""
    config_from_dict = study.family.config_from_dict
    answers = [oracle.verify(config_from_dict(fields), study) for fields in row.configs]
    wrong = tuple(
        Finding(
            rule="unanswered" if answer.status in UNANSWERED else "wrong",
            where=row.where,
            message=refusal(i, answer),
        )
        for i, answer in enumerate(answers)
        if not answer.ok
    )
    return "; ".join(dict.fromkeys(str(a.metrics.get("how", "")) for a in answers)), wrong


def left(row: TableRow, rule: str, message: str) -> Restamp:
    """A row that stays as it is, and why."""
    return Restamp(row=row, findings=(Finding(rule=rule, where=row.where, message=message),))
