"""One `Evaluation` as one line of JSON, and back.

A line carries the candidate's digest beside the candidate, so that a damaged line, or a record
whose meaning has changed since it was written, is noticed when it is read.
"""

import json
from collections.abc import Mapping
from typing import Any

from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status

SCHEMA = "rpa-store/1"

# What an answer depends on beside the candidate. An answer whose stamp differs from today's is
# kept in the store but not reused. `kernel`, `simulator` and `verifier` are digests of sources.
STAMP_KEYS = ("kernel", "simulator", "jax", "libtpu", "verifier")
# What an answer does not depend on: a better simulator does not undo what a TPU took, and a
# stricter verifier no time.
_IGNORED = {
    Fidelity.ANALYTICAL: ("verifier",),
    Fidelity.SIMULATED: ("verifier",),
    Fidelity.MEASURED: ("simulator", "verifier"),
    Fidelity.INTERPRETED: ("simulator",),
}


def stamp_of(
    provenance: Mapping[str, Any], fidelity: Fidelity = Fidelity.SIMULATED
) -> tuple[str, ...]:
    """The part of a provenance that decides whether an answer still holds.

    Args:
      provenance: A missing key counts as the empty string.
      fidelity: How the answer was got.
    """
    ignored = _IGNORED[fidelity]
    return tuple("" if key in ignored else str(provenance.get(key) or "") for key in STAMP_KEYS)


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """JSON form of an evaluation."""
    return {
        "digest": evaluation.candidate.digest,
        "fidelity": evaluation.fidelity.name.lower(),
        "status": evaluation.status.value,
        "detail": evaluation.detail,
        "time_us": evaluation.time_us,
        "batch_us": list(evaluation.batch_us),
        "metrics": evaluation.metrics,
        "provenance": evaluation.provenance,
        "candidate": evaluation.candidate.to_dict(),
    }


def encode(evaluation: Evaluation) -> bytes:
    """One line, newline included.

    Raises:
      ValueError: A number is not finite, or a metric is not JSON.
    """
    try:
        text = json.dumps(to_dict(evaluation), separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"evaluation is not JSON: {error}") from error
    return text.encode() + b"\n"


def from_dict(data: Mapping[str, Any]) -> Evaluation:
    """Inverse of `to_dict`.

    Raises:
      ValueError, KeyError, TypeError: It is damaged, or is not an evaluation.
    """
    candidate = Candidate.from_dict(data["candidate"])
    if candidate.digest != data["digest"]:
        raise ValueError(f"digest is {candidate.digest}, but the line says {data['digest']}")
    return Evaluation(
        candidate=candidate,
        fidelity=Fidelity[data["fidelity"].upper()],
        status=Status(data["status"]),
        detail=data["detail"],
        time_us=data["time_us"],
        batch_us=tuple(data["batch_us"]),
        metrics=data["metrics"],
        provenance=data["provenance"],
    )


def decode(line: bytes) -> Evaluation:
    """Reads one line.

    Raises:
      ValueError, KeyError, TypeError: The line is damaged, or is not an evaluation.
    """
    return from_dict(json.loads(line))
