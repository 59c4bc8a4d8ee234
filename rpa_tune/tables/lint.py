"""What a table must promise beyond parsing: each row fits, can be reached, and is not stale.

Lint returns findings instead of raising, so that one run shows everything that is wrong.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rpa_tune.errors import TableError, UsageError
from rpa_tune.families.registry import ALL_FAMILIES, load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.key import problem_of, representative, tuning_key
from rpa_tune.tables.reader import read_table
from rpa_tune.tables.row import HEURISTIC, SCHEMA, TableRow
from rpa_tune.tables.writer import render


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with a table.

    Attributes:
      rule: Short name: `parse`, `canonical`, `chip`, `family`, `config`, `fit`, `reach`,
        `dead_config`, `evidence`, `stale`.
      where: `file:line`.
      message: What is wrong.
    """

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        """`where: rule: message`."""
        return f"{self.where}: {self.rule}: {self.message}"


def lint_folder(folder: Path, kernel_digests: Mapping[str, str]) -> list[Finding]:
    """Findings of every table file below `folder`, in file order.

    Args:
      folder: Holds `<chip>/<family>.jsonl`.
      kernel_digests: Today's source digest by family; a row with another one is stale.
    """
    findings = []
    for path in sorted(folder.glob("*/*.jsonl")):
        findings += lint_file(path, kernel_digests)
    return findings


def lint_file(path: Path, kernel_digests: Mapping[str, str]) -> list[Finding]:
    """Findings of one table file."""
    try:
        rows = read_table(path)
    except TableError as error:
        return [Finding(rule="parse", where=error.where or str(path), message=error.args[0])]
    findings = []
    text, written = (
        render(rows, chip=path.parent.name, family=path.stem),
        path.read_text(encoding="utf-8"),
    )
    # A file of an older schema is written anew when its next row comes.
    is_newest = json.loads(written.split("\n", 1)[0])["schema"] == SCHEMA
    if is_newest and text != written:
        findings.append(
            Finding(rule="canonical", where=str(path), message="not sorted as the writer does")
        )
    for row in rows:
        findings += lint_row(row, kernel_digests)
    return findings


def lint_row(row: TableRow, kernel_digests: Mapping[str, str]) -> list[Finding]:
    """Findings of one row."""
    try:
        target = load_chip(row.key.chip).target
    except UsageError as error:
        return [Finding(rule="chip", where=row.where, message=error.args[0])]
    if row.key.family not in ALL_FAMILIES:
        message = f"{row.key.family!r} is not one of {ALL_FAMILIES}"
        return [Finding(rule="family", where=row.where, message=message)]
    found: list[tuple[str, str]] = []
    try:
        problem = representative(row.key)
        if tuning_key(problem, row.key.chip, row.key.family) != row.key:
            found.append(("reach", "no call has this key: a size is not rounded as look-up does"))
    except ValueError as error:
        return [Finding(rule="reach", where=row.where, message=f"no such problem: {error}")]
    family = load_family(row.key.family)
    for i, fields in enumerate(row.configs):
        try:
            blocked = family.check(problem, family.config_from_dict(fields), target)
        except ValueError as error:
            found.append(("config", str(error)))
            continue
        if blocked is not None:
            found.append(("fit", f"configs[{i}] does not fit {row.key.chip}: {blocked}"))
    found += _rule_findings(row) + _evidence_findings(row, kernel_digests)
    return [Finding(rule=rule, where=row.where, message=message) for rule, message in found]


def _rule_findings(row: TableRow) -> list[tuple[str, str]]:
    """Configs and clauses that no step can reach."""
    found = [
        ("dead_config", f"no clause of the rule uses configs[{i}]")
        for i in set(range(len(row.configs))) - {clause.use for clause in row.rule}
    ]
    covered: dict[str, int] = {}
    for i, clause in enumerate(row.rule):
        if clause.feature and clause.at_most <= covered.get(clause.feature, -1):
            found.append(
                ("dead_config", f"rule[{i}] is never reached: an earlier clause covers it")
            )
        covered[clause.feature] = max(clause.at_most, covered.get(clause.feature, -1))
    return found


def _evidence_findings(row: TableRow, digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Verdicts that the row's own numbers contradict, and digests of older kernels."""
    found = []
    evidence = row.evidence
    speedup = evidence.speedup
    if evidence.verdict == HEURISTIC and speedup != 1.0:
        found.append(("evidence", "verdict is heuristic, but the times differ"))
    if evidence.verdict != HEURISTIC and speedup is None:
        found.append(("evidence", "verdict is tuned, but the heuristic has no time to beat"))
    if evidence.verdict != HEURISTIC and speedup is not None:
        needed = 1 + evidence.error_pct / 100
        if speedup <= needed:
            message = f"speed-up {speedup:.3f} is within the evaluator's error ({needed:.3f})"
            found.append(("evidence", message))
    if evidence.problem is not None:
        try:
            problem_of(row.key, evidence.problem)
        except ValueError as error:
            found.append(("evidence", str(error)))
    today = digests.get(row.key.family)
    if today is not None and evidence.kernel_digest != today:
        message = (
            f"kernel was {evidence.kernel_digest}, is {today}: sweep again, or `tables restamp`"
        )
        found.append(("stale", message))
    return found
