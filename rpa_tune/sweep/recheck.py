"""Rows asked again under what is installed today: is a table stale? It takes no TPU.

A row says which configs it promotes, on which problem and workload. All of that is made again, the
configs and today's heuristic are compiled and simulated, and what comes out is compared with what
the row says. `cli/recheck.py` is the command.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rpa_kernels import layout
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.decide.promote import digest_of_schedules, served_lengths
from rpa_tune.errors import RpaTuneError, UsageError
from rpa_tune.families.family import Family
from rpa_tune.families.registry import known_family, load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.libtpu_args import difference
from rpa_tune.models.server import Server
from rpa_tune.provenance import versions
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.shapes import groups_of
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.tables.key import TuningKey, problem_of, studied_key, tuning_key
from rpa_tune.tables.lint import Finding
from rpa_tune.tables.row import TUNED, TableRow
from rpa_tune.workload.workload import Workload, load_workload

# Not the config's fault: the question was not answered.
UNANSWERED = frozenset({Status.CRASHED, Status.COMPILE_TIMEOUT, Status.RUN_TIMEOUT})


# By a plan's identity and a key; the plan is kept so that its identity is not another's.
_BUILT: dict[tuple[int, TuningKey], tuple[SweepPlan, list[Study]]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerUp:
    """A config that was next best when a row was made.

    Attributes:
      config: Its fields.
      then_us: Its time then, mean over the workload.
      time_us: Today's; None without one.
    """

    config: Mapping[str, int]
    then_us: float
    time_us: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCheck:
    """What became of one row.

    Attributes:
      row: As it stands in the table.
      older: What it was made with and what is installed, where they differ: name -> (then, now).
      schedule: `same`, `changed`, or `unknown`: the row, or an answer, has no digest.
      time_us: Of the row's configs today, mean over the workload; None without one.
      heuristic_us: Of today's heuristic; None without one.
      compared_us: Of the config that the row was compared with, or of today's heuristic where the
        row does not say; None without one.
      findings: What makes the row stale, or keeps it from being asked. Their rules: `versions`
        (made with another libtpu or kernel, and not evaluated again), `remake` (it cannot be asked
        again), `unanswered`, `fit`, `schedule`, `time` (moved by more than the evaluator's error,
        with no change of schedule that is known), `rank`.
      runners_up: Those that the row's evidence names, asked again.
    """

    row: TableRow
    older: Mapping[str, tuple[str, str]]
    schedule: str = "unknown"
    time_us: float | None = None
    heuristic_us: float | None = None
    compared_us: float | None = None
    findings: tuple[Finding, ...] = ()
    runners_up: tuple[RunnerUp, ...] = ()

    @property
    def is_other_jax_alone(self) -> bool:
        """Whether the row was made with today's libtpu and kernel, and another jax.

        That is no finding, because schedules are libtpu's: jax 0.11.2 and 0.12.0.1 give the same
        bundles under libtpu 0.0.48 (docs/versions.md).
        """
        return set(self.older) == {"jax"}

    @property
    def overtaken_by(self) -> tuple[RunnerUp, ...]:
        """Runners-up that were no faster than the row when it was made, and are today."""
        then_us, now_us = self.row.evidence.time_us, self.time_us
        return tuple(
            one
            for one in self.runners_up
            if now_us and one.time_us and one.then_us >= then_us and one.time_us < now_us
        )


def remake(row: TableRow, plans: Sequence[SweepPlan] = ()) -> Study:
    """The study that a row came out of; its name is where the row stands.

    Args:
      row: Says which batches it was tuned on, by name and digest.
      plans: Their workloads are tried too: one that only a plan describes has no name.

    Raises:
      UsageError: It cannot be made again; the message says why.
    """
    whole, workload = _workload(row, plans)
    try:
        problem = _problem(row, whole)
    except ValueError as error:
        raise UsageError(f"the problem cannot be rebuilt: {error}") from error
    return Study(
        name=row.where, family=family_of(row), problem=problem, chip=load_chip(row.key.chip),
        workload=workload, libtpu_args=row.evidence.libtpu_args,
    )  # fmt: skip


def family_of(row: TableRow) -> Family:
    """The family that a row is for.

    Raises:
      UsageError: This version has none of that name.
    """
    try:
        return load_family(row.key.family)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_versions(row: TableRow, plans: Sequence[SweepPlan] = ()) -> RowCheck:
    """What can be said of a row without compiling anything; `plans` as in `remake`."""
    check = RowCheck(row=row, older=older_versions(row))
    try:
        remake(row, plans)
    except UsageError as error:
        check = _with(check, "remake", error.args[0])
    if check.older and not check.is_other_jax_alone:
        check = _with(check, "versions", "made with other versions and not evaluated again")
    return check


def ask(
    row: TableRow, oracle: Oracle, plans: Sequence[SweepPlan] = (), libtpu_args: str = ""
) -> RowCheck:
    """Evaluates a row's configs and today's heuristic, and compares.

    Args:
      row: Its `where` must be its own.
      oracle: Simulates, and remembers.
      plans: See `remake`.
      libtpu_args: Flags that the oracle's compiler is given.

    Raises:
      BudgetSpentError, StoppedError: See `Oracle.ask`.
    """
    check = RowCheck(row=row, older=older_versions(row))
    try:
        family = family_of(row)
    except UsageError as error:
        return _with(check, "remake", error.args[0])
    try:
        configs = [family.config_from_dict(fields) for fields in row.configs]
    except ValueError as error:
        return _with(check, "fit", f"the kernel no longer has this config: {error}")
    try:
        study = remake(row, plans)
    except UsageError as error:
        return _with(check, "remake", error.args[0])
    if other := difference(study.libtpu_args, libtpu_args):
        return _with(check, "remake", f"{other}: see --libtpu-args")
    heuristic = study.heuristic()
    compared = _compared_with(row, family) or heuristic
    others = _runners_up(row, family)
    others.pop(heuristic, None)  # asked for itself
    asked_for = [*configs, heuristic, compared, *others]
    wave = dict.fromkeys(c for c in asked_for if not isinstance(c, Infeasible))
    candidates = [study.candidate(config) for config in wave]
    told = oracle.ask(candidates, study, Fidelity.SIMULATED)
    answers = {answer.candidate.config: answer for answer in told}
    asked = tuple(replace(one, time_us=answers[config].time_us) for config, one in others.items())
    then = answers.get(compared)
    return compare(
        replace(check, runners_up=asked, compared_us=then.time_us if then else None),
        [answers[config] for config in configs],
        answers.get(heuristic),
        study.workload,
    )


def compare(
    check: RowCheck, answers: Sequence[Evaluation], heuristic: Evaluation | None, workload: Workload
) -> RowCheck:
    """The check with what today's answers say.

    A rank has flipped when today's heuristic is faster than a tuned row, or faster by more than
    the evaluator's error than a row that pinned the heuristic of its day; when a runner-up that
    was no faster is by more than that error; and when one config of a row with several is faster
    alone than with the row's rule.

    Args:
      check: Of a row.
      answers: To the row's configs, in their order.
      heuristic: The answer to the heuristic's config, if it has one.
      workload: In the order of `batch_us`.
    """
    row, evidence = check.row, check.row.evidence
    for i, answer in enumerate(answers):
        if not answer.ok:
            rule = "unanswered" if answer.status in UNANSWERED else "fit"
            check = _with(check, rule, refusal(i, answer))
    if check.findings:
        return check
    time_us = row_time_us(row, answers, workload)
    digest = digest_of_schedules(answers)
    check = replace(check, time_us=time_us, heuristic_us=heuristic.time_us if heuristic else None)
    if evidence.schedule_digest and digest:
        check = replace(check, schedule="same" if digest == evidence.schedule_digest else "changed")
    change_pct = round(100 * (time_us / evidence.time_us - 1), 1) + 0.0  # no minus zero
    times = f"{evidence.time_us:,.1f} us before, {time_us:,.1f} us now ({change_pct:+.1f} %)"
    if check.schedule == "changed":
        check = _with(check, "schedule", f"the schedule changed: {times}")
    elif abs(change_pct) > evidence.error_pct:
        check = _with(check, "time", times)
    margin = 1.0 if evidence.verdict == TUNED else 1 + evidence.error_pct / 100
    if check.heuristic_us is not None and check.heuristic_us * margin < time_us:
        message = f"today's heuristic takes {check.heuristic_us:,.1f} us, the row {time_us:,.1f} us"
        check = _with(check, "rank", message)
    for one in check.overtaken_by:
        if one.time_us and one.time_us * (1 + evidence.error_pct / 100) < time_us:
            fields = ", ".join(f"{name}={value}" for name, value in one.config.items())
            message = (
                f"a runner-up takes {one.time_us:,.1f} us, the row {time_us:,.1f} us: {fields}"
            )
            check = _with(check, "rank", message)
    alone_us = [answer.time_us or 0.0 for answer in answers]
    # A rule is promoted for gaining on every single config, in time unless an objective is named.
    if len(answers) > 1 and ", by " not in evidence.workload and min(alone_us) < time_us:
        fastest = alone_us.index(min(alone_us))
        message = (
            f"configs[{fastest}] alone takes {min(alone_us):,.1f} us, the row {time_us:,.1f} us"
        )
        check = _with(check, "rank", message)
    return check


def _compared_with(row: TableRow, family: Family) -> Any:
    """The config that a row was compared with; None if it does not say, or there is none now."""
    with contextlib.suppress(ValueError):
        return None if row.heuristic is None else family.config_from_dict(row.heuristic)
    return None


def _runners_up(row: TableRow, family: Family) -> dict[Any, RunnerUp]:
    """The runners-up that a row names by their configs, those that the kernel still has."""
    found = {}
    for one in row.evidence.runners_up:
        with contextlib.suppress(ValueError):
            config = family.config_from_dict(one["config"])
            found[config] = RunnerUp(config=one["config"], then_us=one["time_us"])
    return found


def refusal(i: int, answer: Evaluation) -> str:
    """Why there is no good answer to config `i` of a row."""
    return f"configs[{i}] {answer.status}: {answer.detail}"


def row_time_us(row: TableRow, answers: Sequence[Evaluation], workload: Workload) -> float:
    """Mean time over a workload when the row's rule picks the config.

    Args:
      row: One or more configs with a rule.
      answers: To its configs, in their order; all have times.
      workload: In the order of `batch_us`.
    """
    family = answers[0].candidate.family
    total = sum(weighted.weight for weighted in workload.batches)
    return (
        sum(
            weighted.weight * answers[row.pick(served_lengths(weighted.batch, family))].batch_us[i]
            for i, weighted in enumerate(workload.batches)
        )
        / total
    )


def older_versions(row: TableRow) -> dict[str, tuple[str, str]]:
    """In what today's installation differs from the one that made a row."""
    family = known_family(row.key.family)
    today = {
        "jax": versions()["jax"] or "",
        "libtpu": versions()["libtpu"] or "",
        "kernel_digest": family.digest if family else "",
    }
    then = {name: getattr(row.evidence, name) for name in today}
    return {name: (then[name], today[name]) for name in today if then[name] != today[name]}


def _workload(row: TableRow, plans: Sequence[SweepPlan]) -> tuple[Workload, Workload]:
    """The workload that a row was tuned on, and its part that the row's family serves."""
    evidence = row.evidence
    # The objective stands behind the name: see `promote`.
    name = evidence.workload.rpartition(", by ")[0] or evidence.workload
    reasons = []
    for plan in plans:
        try:
            if (found := _of_server(row, plan)) is not None:
                return found, found
        except (RpaTuneError, ValueError) as error:
            reasons.append(f"the shapes of {plan.path} cannot be rebuilt: {error.args[0]}")
    for source in (_parts(name), *(plan.workload for plan in plans)):
        try:
            whole = load_workload(source, page_size=row.key.page_size)
            workload = whole.for_family(*family_of(row).slots)
        except (RpaTuneError, ValueError) as error:
            reasons.append(f"workload {name!r} cannot be rebuilt: {error.args[0]}")
            continue
        if workload.digest == evidence.workload_digest:
            return whole, workload
        reasons.append(
            f"workload {name!r} has other batches now: {workload.digest}, "
            f"the row was tuned on {evidence.workload_digest}"
        )
    raise UsageError(reasons[0])


def _of_server(row: TableRow, plan: SweepPlan) -> Workload | None:
    """The batches that a plan judges a row's shapes on, if they are those of the row."""
    if not plan.each_server or row.key.family not in plan.families:
        return None
    return next(
        (
            study.workload
            for study in _studies(plan, studied_key(row.key))
            if studied_key(study.key) == studied_key(row.key)
            and study.workload.digest == row.evidence.workload_digest
        ),
        None,
    )


def _studies(plan: SweepPlan, key: TuningKey) -> list[Study]:
    """Those of the servers of a plan that have shapes with a key: no other takes part in its rows.

    Kept, because rows of one study ask alike; a plan's workload is served anew for each server.
    """
    asked = id(plan), key
    if asked not in _BUILT:
        servers = tuple(server for server in plan.each_server if _has(server, plan.q_dtype, key))
        only = replace(plan, families=(key.family,), servers=servers)
        _BUILT[asked] = plan, build_studies(only) if servers else []
    return _BUILT[asked][1]


def _has(server: Server, q_dtype: str, key: TuningKey) -> bool:
    """Whether rows of a server's shapes are of the study of a key."""
    family = load_family(key.family)
    if server.chip != key.chip or key.family not in (server.only_families or (key.family,)):
        return False
    return any(
        studied_key(tuning_key(group.problems[-1], key.chip, key.family)) == key
        for share in server.layers(q_dtype=q_dtype)
        if share.problem.is_latent is family.is_latent
        for group in groups_of(server, share.problem, family)
    )


def _problem(row: TableRow, whole: Workload) -> Problem:
    """The problem that was timed; what an old row does not say is what a model usually has."""
    key, beyond = row.key, row.evidence.problem
    if beyond is None:
        pages = layout.next_power_of_2(whole.num_pages(key.page_size))
        beyond = {"num_pages": pages, "sm_scale": key.head_dim**-0.5}
    return problem_of(key, beyond)


def _parts(name: str) -> str | dict[str, float]:
    """A workload's name, or the weighted set that `combine` made its name from."""
    parts = [part.split(" % ", 1) for part in name.split(" + ")]
    if not all(len(part) == 2 and part[0].replace(".", "", 1).isdigit() for part in parts):
        return name
    return {part[1]: float(part[0]) for part in parts}


def _with(check: RowCheck, rule: str, message: str) -> RowCheck:
    found = Finding(rule=rule, where=check.row.where, message=message)
    return replace(check, findings=(*check.findings, found))
