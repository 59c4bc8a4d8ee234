"""Which answers say more about the machine or the moment than about the candidate.

Such an answer is never final. A crash is asked for once more at once; a timeout by the next run,
because the machine may be less busy then, or the deadline longer. And when everything in a study
fails for one and the same reason, that is no news about any of its candidates: the next run asks
again. The store (`journal.py`) and runs that share a sweep (`sweep/exchange.py`) go by this alone.
"""

import re
from collections.abc import Iterable

from rpa_tune.candidate import Evaluation, Status

# A worker that died, a disk that was full: once more at once.
CRASHES = frozenset({Status.CRASHED})
TRANSIENT = CRASHES | {Status.COMPILE_TIMEOUT, Status.RUN_TIMEOUT}
MAX_ATTEMPTS = 2
# Candidates in a row, the heuristic's first, whose one reason ends a study.
MOST_ALIKE = 3

# The candidate's own failures, on every machine and at any time.
_ITS_OWN = frozenset({Status.INFEASIBLE, Status.OUT_OF_MEMORY, Status.WRONG_ANSWER})
# What differs between two messages of one reason: paths, numbers, addresses.
_PARTICULARS = re.compile(r"/\S+|0x[0-9a-fA-F]+|\d+(\.\d+)?")


def is_settled(status: Status, *, num_here: int, was_before: bool) -> bool:
    """Whether an answer counts, or is to be asked for again.

    Args:
      status: Of the last answer.
      num_here: Answers got by this run and those that it shares its work with.
      was_before: Whether earlier runs have one; all of theirs count as one attempt.
    """
    if status in CRASHES:
        return num_here + was_before >= MAX_ATTEMPTS
    return status not in TRANSIENT or num_here > 0


def reason_of(answer: Evaluation) -> str:
    """Status and detail of an answer, without the particulars of its candidate."""
    return f"{answer.status.value}: {_PARTICULARS.sub('#', answer.detail)}"


def fail_alike(answers: Iterable[Evaluation]) -> bool:
    """Whether there are answers, and all fail for one reason that need not be the candidates'."""
    reasons = set()
    for answer in answers:
        if answer.ok or answer.status in _ITS_OWN:
            return False
        reasons.add(reason_of(answer))
        if len(reasons) > 1:
            return False
    return bool(reasons)
