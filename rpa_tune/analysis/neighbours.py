"""What `explain` advises from: neighbours of a candidate that were really tried, with their times.

A neighbour differs in one thing: one value of the config, the page size, or the dtype of the KV
cache. Times come from stores (any config of the same study), and from tries that a person asks for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.question import Question, make_question
from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.decide.promote import ERROR_PCT
from rpa_tune.errors import StoreError, UsageError
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.models.padding import bytes_by_layout
from rpa_tune.provenance import provenance
from rpa_tune.space.space import one_step_away
from rpa_tune.store import journal
from rpa_tune.store.codec import stamp_of

# Neighbours with another problem, made when they are needed: each has a workload of its own.
Others = Callable[[], list[tuple[str, Question]]]
STORED, TRIED, BOUNDED = "stored", "tried", "bounded"
# Which other cache to try: half the bytes of an element, or what the quantised one came from.
_OTHER_CACHE = {
    "float32": "bfloat16", "bfloat16": "float8_e4m3fn", "float8_e4m3fn": "bfloat16",
    "float8_e5m2": "bfloat16", "int8": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """One neighbour, and what is known of it.

    Attributes:
      change: In what it differs, in words.
      question: The candidate and its batches.
      how: `stored`, `tried`, or `bounded`: its lower bound is above the time to beat.
      status: How its evaluation ended; empty when bounded.
      time_us: Simulated time of a launch, or None without one.
      bound_us: No kernel with its account is faster; None where that was not worked out.
    """

    change: str
    question: Question
    how: str
    status: str = ""
    time_us: float | None = None
    bound_us: float | None = None

    def to_dict(self, base_us: float) -> dict[str, Any]:
        """JSON form; `speedup` is against the candidate that was asked about."""
        candidate = self.question.candidate
        return {
            "change": self.change,
            "how": self.how,
            "status": self.status or None,
            "time_us": self.time_us,
            "lower_bound_us": self.bound_us,
            "speedup": base_us / self.time_us if self.time_us else None,
            "page_size": candidate.problem.page_size,
            "kv_dtype": candidate.problem.kv_dtype,
            "config": config_to_dict(candidate.config),
        }


def other_problems(question: Question) -> list[tuple[str, Question]]:
    """Twice and half the page size, another KV cache, and a layout that pads less, if they exist.

    A config that a person gave stays; the family's own choice is made anew.

    Args:
      question: Whose neighbours.
    """
    problem = question.candidate.problem
    size, cache = problem.page_size, _OTHER_CACHE[problem.kv_dtype]
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"page size {other} instead of {size}", {"page_size": other})
        for other in (2 * size, size // 2)
        if other
    ]
    changes.append((f"{cache} cache instead of {problem.kv_dtype}", {"kv_dtype": cache}))
    stored = bytes_by_layout(problem)
    least = min(stored, key=stored.__getitem__)
    if stored[least] < stored[problem.kv_layout]:
        changes.append((f"{least} instead of {problem.kv_layout}", {"kv_layout": least}))
    config = None if question.is_default else asdict(question.candidate.config)
    found = []
    for change, fields in changes:
        try:
            other = make_question(**{**question.given, "config": config, **fields})
        except UsageError:
            continue  # no such problem: a page that is too small, say
        target = other.candidate.chip.target
        asked = other.candidate
        if asked.family.check(asked.problem, asked.config, target) is None:
            found.append((change, other))
    return found


def read_stores(
    named: Sequence[Path], folder: Path, said: Callable[[str], None]
) -> Iterator[Evaluation]:
    """The answers of the stores that a person named, or else of all in a folder.

    Args:
      named: Must be stores.
      folder: A file in it that cannot be read is left out, and said.
      said: Takes a line for each of those.

    Raises:
      StoreError: A named file is no store.
    """
    for path in named:
        yield from journal.read(path).evaluations
    for path in () if named else sorted(folder.glob("*.jsonl")):
        try:
            yield from journal.read(path).evaluations
        except StoreError as error:
            said(f"{path} is left out: {error.args[0]}")


def find_stored(
    question: Question, others: Others, answers: Iterable[Evaluation]
) -> list[Neighbour]:
    """What stores know: every config of the same study, and neighbours of other kinds.

    Args:
      question: Whose neighbours.
      others: Its neighbours with another problem; not asked for when the stores know nothing.
      answers: Of stores; those of other versions are passed over.
    """
    stamp = stamp_of(provenance(question.candidate.family.digest))
    known: dict[str, Evaluation] = {}
    for answer in answers:
        if answer.fidelity is Fidelity.SIMULATED and stamp_of(answer.provenance) == stamp:
            known[answer.candidate.digest] = answer
    if not known:
        return []
    own = question.candidate
    found = [
        _answered(_config_change(own.config, e.candidate.config), STORED,
                  replace(question, candidate=e.candidate), e)
        for e in known.values()
        if e.candidate.study == own.study and e.candidate.digest != own.digest
    ]  # fmt: skip
    found += [
        _answered(change, STORED, other, known[other.candidate.digest])
        for change, other in others()
        if other.candidate.digest in known
    ]
    return found


def try_neighbours(
    question: Question,
    others: Others,
    evaluator: AbstractEvaluator,
    *,
    most: int,
    base_us: float,
    known: Sequence[Neighbour],
    said: Callable[[str], None],
) -> list[Neighbour]:
    """Compiles and simulates neighbours, those of the least bound first.

    Args:
      question: Whose neighbours.
      others: Its neighbours with another problem.
      evaluator: Simulates.
      most: So many at most.
      base_us: The time to beat; a neighbour whose bound is above it is not tried.
      known: Those of stores, which are not asked again.
      said: Takes a line for each answer.
    """
    asked_before = {neighbour.question.candidate.digest for neighbour in known}
    every = [*others(), *_other_configs(question)]
    fresh = [(c, q) for c, q in every if q.candidate.digest not in asked_before]
    bounded = sorted(
        (
            Neighbour(change=change, question=other, how=BOUNDED, bound_us=_bound_us(other))
            for change, other in fresh
        ),
        key=lambda neighbour: neighbour.bound_us or 0.0,
    )
    hopeless = [n for n in bounded if n.bound_us is not None and n.bound_us >= base_us]
    chosen = [n for n in bounded if n not in hopeless][:most]
    found = []
    for digest in dict.fromkeys(n.question.workload.digest for n in chosen):
        group = [n for n in chosen if n.question.workload.digest == digest]
        by_candidate = {n.question.candidate.digest: n for n in group}
        candidates = [n.question.candidate for n in group]
        for answer in evaluator.evaluate_all(candidates, group[0].question.workload):
            neighbour = by_candidate[answer.candidate.digest]
            found.append(_answered(neighbour.change, TRIED, neighbour.question, answer))
            took = f"{answer.time_us:,.1f} us" if answer.time_us else answer.status.value
            said(f"{len(found)} of {len(chosen)}: {neighbour.change}: {took}")
    return [*found, *hopeless]


def advice(neighbours: Sequence[Neighbour], base_us: float) -> str:
    """What follows from the neighbours that have times; empty without any."""
    timed = sorted((n for n in neighbours if n.time_us), key=lambda n: n.time_us or 0.0)
    if not timed:
        return ""
    error_pct = ERROR_PCT[Fidelity.SIMULATED]
    best = timed[0]
    best_us = best.time_us or 0.0
    took = (
        f"takes {best_us:,.1f} us instead of {base_us:,.1f}, {base_us / best_us:.2f}x (simulated)"
    )
    if best_us * (1 + error_pct / 100) < base_us:
        return f"{best.change} {took}"
    return (
        f"none of {len(timed)} tried is faster by more than the simulator's error of "
        f"{error_pct:g} %; the fastest, {best.change}, {took}"
    )


def _answered(change: str, how: str, question: Question, answer: Evaluation) -> Neighbour:
    return Neighbour(
        change=change,
        question=question,
        how=how,
        status=answer.status.value,
        time_us=answer.time_us,
    )


def _bound_us(question: Question) -> float | None:
    (bound,) = AnalyticalEvaluator().evaluate_all([question.candidate], question.workload)
    return bound.time_us


def _other_configs(question: Question) -> list[tuple[str, Question]]:
    candidate = question.candidate
    target = candidate.chip.target
    family = candidate.family
    return [
        (
            _config_change(candidate.config, config),
            replace(question, candidate=replace(candidate, config=config), is_default=False),
        )
        for config in one_step_away(candidate.config, family, candidate.problem, target)
    ]


def _config_change(config: Any, other: Any) -> str:
    """`bkv_sz=1024 for 512, ...`."""
    ours, theirs = asdict(config), asdict(other)
    return ", ".join(
        f"{name}={theirs[name]} instead of {ours[name]}"
        for name in ours
        if theirs[name] != ours[name]
    )
