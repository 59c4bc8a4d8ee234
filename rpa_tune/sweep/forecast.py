"""What a sweep would cost: how much there is to do, and how long that takes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rpa_tune.candidate import Correctness, Evaluation, Fidelity
from rpa_tune.evaluate.interpreted import stand_in
from rpa_tune.models.padding import padding_note
from rpa_tune.provenance import provenance
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.doubt import TRANSIENT
from rpa_tune.sweep.job import Job
from rpa_tune.sweep.study import Study

# Compile and simulate one candidate, and check one config under the interpreter, until the store
# has times of its own. Guesses.
_GUESSED_CANDIDATE_S = 8.0
_GUESSED_CHECK_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyForecast:
    """What one study would cost.

    Attributes:
      study: Its name.
      padding: What the KV cache's padding costs, in words; empty if nothing.
      grid: Points of the axes.
      feasible: Configs among them that can exist.
      rejected: Limit -> points that break it.
      simulate_at_most: Simulations of the study, known ones among them.
      known: Simulations that a store has.
      verify_at_most: Checks under the interpreter.
      seconds: For the whole of what is not known, with all workers.
      seconds_are: `from the store`, or `a guess`.
    """

    study: str
    padding: str
    grid: int
    feasible: int
    rejected: Mapping[str, int]
    simulate_at_most: int
    known: int
    verify_at_most: int
    seconds: float
    seconds_are: str


def forecast(
    job: Job, *, num_workers: int, verify: bool = True, fresh: bool = False
) -> list[StudyForecast]:
    """What each study of a run would cost, from its space and what is known. Runs nothing.

    Args:
      job: The run; see `open_job`.
      num_workers: Processes at once.
      verify: Whether winners are checked; a check counts as often as a row may have configs.
      fresh: Whether everything is asked anew.
    """
    known = [] if fresh else job.answers
    simulated = [e for e in known if e.fidelity is Fidelity.SIMULATED and e.status not in TRANSIENT]
    each_s, is_known = _mean_seconds(simulated, _GUESSED_CANDIDATE_S)
    checks = [e for e in known if e.fidelity is Correctness.INTERPRETED]
    check_s, _ = _mean_seconds(checks, _GUESSED_CHECK_S)
    checked = {(e.candidate.digest, stamp_of(e.provenance, e.fidelity)) for e in checks}
    rows = []
    for study in job.mine:
        space = study.space()
        num_simulated = min(study.search.simulate, len(space.configs))
        stamp = stamp_of(provenance(study.family.digest))
        check_stamp = stamp_of(provenance(study.family.digest), Correctness.INTERPRETED)
        own = [e for e in simulated if _belongs(e, study) and stamp_of(e.provenance) == stamp]
        todo = max(0, num_simulated - len(own))
        is_checked = any(
            (stand_in(e.candidate)[0].digest, check_stamp) in checked for e in own if e.ok
        )
        needs_checks = verify and not study.family.unverified
        num_checks = study.search.configs if needs_checks and (todo or not is_checked) else 0
        rows.append(
            StudyForecast(
                study=study.name,
                padding=padding_note(study.problem),
                grid=space.num_points,
                feasible=len(space.configs),
                rejected=dict(space.rejected),
                simulate_at_most=num_simulated,
                known=len(own),
                verify_at_most=num_checks,
                seconds=round((todo * each_s + num_checks * check_s) / num_workers, 1),
                seconds_are="from the store" if is_known else "a guess",
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupForecast:
    """What the studies of one chip and family would cost.

    Attributes:
      chip: Its name.
      family: Kernel family.
      studies: How many.
      rows: That they make.
      evaluations: Simulations at most, and checks of winners, known ones among them.
      known: Of these, those that a store has.
      core_hours: Of what is not known.
      seconds_are: `from the store`, or `a guess`.
    """

    chip: str
    family: str
    studies: int
    rows: int
    evaluations: int
    known: int
    core_hours: float
    seconds_are: str


def forecast_groups(job: Job, *, verify: bool = True) -> list[GroupForecast]:
    """What a run would cost by chip and family, in the order of the plan.

    Unlike `forecast` it looks at no space, so that it is quick for thousands of studies; a study
    counts as many simulations as its plan allows it.

    Args:
      job: The run; see `open_job`.
      verify: Whether winners are checked; as in `forecast`.
    """
    simulated = [e for e in job.answers if e.fidelity is Fidelity.SIMULATED]
    checks = [e for e in job.answers if e.fidelity is Correctness.INTERPRETED]
    each_s, is_known = _mean_seconds(simulated, _GUESSED_CANDIDATE_S)
    check_s, _ = _mean_seconds(checks, _GUESSED_CHECK_S)
    answered = Counter(e.candidate.study for e in simulated if e.status not in TRANSIENT)
    groups: dict[tuple[str, str], list[Study]] = {}
    for study in job.mine:
        groups.setdefault((study.chip.name, study.family.name), []).append(study)
    found = []
    for (chip, family), studies in groups.items():
        needs_checks = verify and not studies[0].family.unverified
        known = [min(answered[study.digest], study.search.simulate) for study in studies]
        todo = sum(study.search.simulate for study in studies) - sum(known)
        num_checks = sum(n < s.search.simulate for n, s in zip(known, studies, strict=True))
        num_checks *= needs_checks
        found.append(
            GroupForecast(
                chip=chip,
                family=family,
                studies=len(studies),
                rows=sum(len(study.keys) for study in studies),
                evaluations=sum(study.search.simulate + needs_checks for study in studies),
                known=sum(known),
                core_hours=round((todo * each_s + num_checks * check_s) / 3600, 2),
                seconds_are="from the store" if is_known else "a guess",
            )
        )
    return found


def guess_seconds(num_candidates: int, num_checks: int, num_workers: int) -> float:
    """Time of a sweep of which nothing is known yet."""
    return (num_candidates * _GUESSED_CANDIDATE_S + num_checks * _GUESSED_CHECK_S) / num_workers


def _mean_seconds(answers: list[Evaluation], guess_s: float) -> tuple[float, bool]:
    """Mean time of an answer, and whether it is known; the guess if no answer has one."""
    seconds = [e.metrics["evaluate_s"] for e in answers if "evaluate_s" in e.metrics]
    return (sum(seconds) / len(seconds), True) if seconds else (guess_s, False)


def _belongs(evaluation: Evaluation, study: Study) -> bool:
    candidate = evaluation.candidate
    return (candidate.family, candidate.problem, candidate.chip, candidate.workload) == (
        study.family, study.problem, study.chip, study.workload.digest
    )  # fmt: skip
