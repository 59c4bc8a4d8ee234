"""What a sweep would cost: how much there is to do, and how long that takes."""

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
