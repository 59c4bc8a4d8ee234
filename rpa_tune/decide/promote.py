"""Answers into table rows, and the rule for what may become one.

A config is promoted only when it beats the heuristic by more than the evaluator's own error; where
the heuristic has no time there is nothing to beat, and no row.
Otherwise the row pins the heuristic's config and says so: a reader of the table then knows that
the problem was looked at, and the dispatcher answers with an exact row instead of a guess. What
"beats" means is the plan's objective (`objective.py`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.decide.objective import EXPECTED_TIME, yardstick
from rpa_tune.decide.portfolio import Portfolio, portfolio_curve
from rpa_tune.families.family import Family
from rpa_tune.llo.ensemble import NEARLY_ALL, share_of_wins
from rpa_tune.tables.key import beyond_key, tuning_key
from rpa_tune.tables.row import (
    ALWAYS_FIRST,
    HEURISTIC,
    MAX_RUNNERS_UP,
    TUNED,
    Clause,
    Evidence,
    TableRow,
)
from rpa_tune.tables.step import Lengths, Step
from rpa_tune.workload.workload import Workload

# Candidates nearer to each other than this are tied, in percent. Analytical times are lower
# bounds and only prune. Simulated: taken over from a prototype of the simulator that was compared
# with public device times of another engine's kernels, where the measured winner was almost
# always within 5 % of the predicted best. Measured: run-to-run spread of a quiet TPU, a guess; a
# larger spread of the samples counts instead.
ERROR_PCT = {Fidelity.ANALYTICAL: 50.0, Fidelity.SIMULATED: 5.0, Fidelity.MEASURED: 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a table should say about one problem and family.

    Attributes:
      verdict: `tuned` or `heuristic`.
      chosen: The evaluation whose config is used.
      heuristic: The heuristic's evaluation.
      best: The evaluation of least loss; `chosen` may be a tied one with a larger KV block.
      error_pct: The error that was allowed for.
      share_of_wins: Sets of the simulator's parameters, as a share, under which the tuned config,
        or else `best`, beats the heuristic; None where they were not simulated under them.
      num_candidates: Evaluations that had a time.
      objective: What the loss is.
    """

    verdict: str
    chosen: Evaluation
    heuristic: Evaluation
    best: Evaluation
    error_pct: float
    num_candidates: int
    objective: str = EXPECTED_TIME
    share_of_wins: float | None = None

    @property
    def speedup(self) -> float:
        """Heuristic's time over the chosen one's."""
        return self.heuristic_us / _time(self.chosen)

    @property
    def heuristic_us(self) -> float:
        """The heuristic's time in microseconds."""
        return _time(self.heuristic)


def decide(
    evaluations: Sequence[Evaluation],
    heuristic: Evaluation | None,
    *,
    objective: str = EXPECTED_TIME,
) -> Decision | None:
    """Chooses among answers of one fidelity.

    Among those tied with the best, a larger KV block wins: of the public tuning keys whose
    measured winner differs from a predicted one, nearly all have the larger block.

    Args:
      evaluations: Answers to candidates that differ in config only.
      heuristic: The answer to the heuristic's config; None when no config of its form can exist.
      objective: What is to be least.

    Returns:
      A decision, or None when the heuristic has no time: nothing then says that another config is
      better than what an engine gets without a table.
    """
    if heuristic is None or not heuristic.ok:
        return None
    measure = yardstick(evaluations, objective)
    ranked = sorted((evaluation for evaluation in evaluations if evaluation.ok), key=measure.loss)
    best = ranked[0]
    error_pct = max(ERROR_PCT[best.rung], round(100 * float(best.metrics.get("spread", 0.0)), 2))
    margin = 1 + error_pct / 100

    def beats_heuristic(evaluation: Evaluation) -> bool:
        if (share := _share_of_wins(evaluation, heuristic)) is not None and share < NEARLY_ALL:
            return False
        return measure.loss(heuristic) > measure.loss(evaluation) * margin

    limit = measure.loss(best) * margin
    tied = [e for e in ranked if measure.loss(e) <= limit and beats_heuristic(e)]
    if tied:
        verdict, chosen = TUNED, max(tied, key=lambda e: (_kv_block(e), -measure.loss(e)))
    else:
        verdict, chosen = HEURISTIC, heuristic
    return Decision(
        verdict=verdict,
        chosen=chosen,
        heuristic=heuristic,
        best=best,
        error_pct=error_pct,
        num_candidates=len(ranked),
        objective=objective,
        share_of_wins=_share_of_wins(chosen if verdict == TUNED else best, heuristic),
    )


def _share_of_wins(ours: Evaluation, heuristic: Evaluation) -> float | None:
    """The sets of parameters under which an answer beats the heuristic's, as a share."""
    ours_us = ours.metrics.get("set_us")
    theirs_us = heuristic.metrics.get("set_us")
    if not ours_us or not theirs_us or len(ours_us) != len(theirs_us):
        return None
    return share_of_wins(ours_us, theirs_us)


def make_row(
    decision: Decision,
    answers: Sequence[Evaluation],
    workload: Workload,
    *,
    max_configs: int = 1,
    verified: str = "",
) -> TableRow:
    """The table row of a decision; a function of the answers alone, so reruns write the same.

    More than one config is promoted only when their rule beats the best single config by more
    than the evaluator's own error.

    Args:
      decision: From `decide`.
      answers: What it was decided on.
      workload: The family's batches, in the order of `batch_us`.
      max_configs: Configs that the row may have.
      verified: How its configs were compared with the reference.
    """
    chosen, family = decision.chosen, decision.chosen.candidate.family
    curve = study_curve(answers, workload, family)
    portfolio = curve[min(max_configs, len(curve)) - 1]
    time_us = _time(chosen)
    verdict = decision.verdict
    configs: tuple[Any, ...] = (chosen.candidate.config,)
    rule: tuple[Clause, ...] = ALWAYS_FIRST
    measure = yardstick(answers, decision.objective)
    loss = measure.of_times(portfolio.time_us, _batch_us(portfolio, answers, workload, family))
    if loss * (1 + decision.error_pct / 100) < measure.loss(decision.best):
        verdict, configs, rule = TUNED, portfolio.configs, portfolio.rule
        time_us = portfolio.time_us
    key = tuning_key(chosen.candidate.problem, chosen.candidate.chip.name, family.name)
    by_config = {answer.candidate.config: answer for answer in answers}
    evidence = replace(
        _evidence(decision, workload),
        verdict=verdict,
        time_us=round(time_us, 3),
        regret_pct=_regret_pct(100 * (time_us / portfolio.oracle_us - 1)),
        regret_by_num_configs_pct=tuple(_regret_pct(entry.regret_pct) for entry in curve),
        verified=verified,
        schedule_digest=digest_of_schedules([by_config[config] for config in configs]),
        problem=beyond_key(chosen.candidate.problem, key),
        runners_up=_runners_up(answers, configs, decision.objective),
        heuristic=config_to_dict(decision.heuristic.candidate.config) if verdict == TUNED else None,
    )
    return TableRow(
        key=key,
        configs=tuple(config_to_dict(config) for config in configs),
        rule=rule,
        evidence=evidence,
    )


def _runners_up(
    answers: Sequence[Evaluation], configs: Sequence[Any], objective: str
) -> tuple[dict[str, Any], ...]:
    """The best answers beside a row's own configs, best first."""
    others = [a for a in answers if a.ok and a.candidate.config not in configs]
    ranked = sorted(others, key=yardstick(answers, objective).loss)[:MAX_RUNNERS_UP]
    return tuple(
        {"config": config_to_dict(a.candidate.config), "time_us": round(_time(a), 3)}
        for a in ranked
    )


def _regret_pct(value: float) -> float:
    """Rounded; a sum of floats that ends just below nothing is nothing."""
    return max(0.0, round(value, 2))


def digest_of_schedules(answers: Sequence[Evaluation]) -> str:
    """One digest for the schedules of a row's configs, in their order; empty if one is unknown."""
    digests = [str(answer.metrics.get("schedule_digest") or "") for answer in answers]
    if not all(digests):
        return ""
    return hashlib.sha256(",".join(digests).encode()).hexdigest()[:16]


def study_curve(
    answers: Sequence[Evaluation], workload: Workload, family: Family
) -> tuple[Portfolio, ...]:
    """The best rules of 1, 2, 3, ... configs for the answers to one problem.

    Args:
      answers: Of one fidelity; those without a time are left out.
      workload: The family's batches, in the order of `batch_us`.
      family: Kernel family.

    Raises:
      ValueError: No answer has a time.
    """
    return portfolio_curve(
        {answer.candidate.config: answer.batch_us for answer in answers if answer.ok},
        [weighted.weight for weighted in workload.batches],
        [served_lengths(weighted.batch, family) for weighted in workload.batches],
    )


def _batch_us(
    portfolio: Portfolio, answers: Sequence[Evaluation], workload: Workload, family: Family
) -> list[float]:
    """Time of each batch when the portfolio's rule picks the config."""
    times = {answer.candidate.config: answer.batch_us for answer in answers if answer.ok}
    picked = []
    for i, weighted in enumerate(workload.batches):
        lengths = served_lengths(weighted.batch, family)
        use = next(clause.use for clause in portfolio.rule if clause.holds(lengths))
        picked.append(times[portfolio.configs[use]][i])
    return picked


def served_lengths(batch: Batch, family: Family) -> Lengths:
    """The sequences of a batch that a family serves."""
    step = Step.of_batch(batch)
    return sum((step.lengths(slot) for slot in family.slots), Lengths())


def _evidence(decision: Decision, workload: Workload) -> Evidence:
    """The evidence for the single config that was chosen."""
    chosen, source = decision.chosen, decision.chosen.provenance
    judged_by = "" if decision.objective == EXPECTED_TIME else f", by {decision.objective}"
    return Evidence(
        verdict=decision.verdict,
        fidelity=chosen.fidelity.name.lower(),
        time_us=_time(chosen),
        heuristic_us=round(decision.heuristic_us, 3),
        error_pct=decision.error_pct,
        regret_pct=0.0,
        bound_by=str(chosen.metrics.get("bound_by", "")),
        workload=workload.name + judged_by,
        workload_source=workload.source,
        workload_digest=workload.digest,
        num_candidates=decision.num_candidates,
        verified="",
        interval_us=_interval(chosen),
        share_of_wins=decision.share_of_wins and round(decision.share_of_wins, 3),
        kernel_digest=str(source.get("kernel") or ""),
        jax=str(source.get("jax") or ""),
        libtpu=str(source.get("libtpu") or ""),
        libtpu_args=chosen.candidate.libtpu_args,
        date=str(source.get("time") or "")[:10],
    )


def _interval(evaluation: Evaluation) -> tuple[float, float] | None:
    """Where nine of ten sets put its time, in microseconds."""
    low_and_high = evaluation.metrics.get("interval_us")
    return (round(low_and_high[0], 3), round(low_and_high[1], 3)) if low_and_high else None


def _time(evaluation: Evaluation) -> float:
    if evaluation.time_us is None:
        raise ValueError(f"no time: {evaluation.status.value} {evaluation.detail}")
    return evaluation.time_us


def _kv_block(evaluation: Evaluation) -> int:
    """Tokens of a KV block; every family of this kind calls it `bkv_sz`."""
    return int(getattr(evaluation.candidate.config, "bkv_sz", 0))
