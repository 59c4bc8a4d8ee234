"""One `Evaluation` as one line of JSON, and back.

A line carries the candidate's digest beside the candidate, so that a damaged line, or a record
whose meaning has changed since it was written, is noticed when it is read.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from rpa_tune.candidate import (
    Candidate,
    Correctness,
    Evaluation,
    Fidelity,
    Method,
    Status,
    method_of,
)

SCHEMA = "rpa-store/1"

Kind = TypeVar("Kind")
_LONGEST_US = 1e18

# What an answer depends on beside the candidate. An answer whose stamp differs from today's is
# kept in the store but not reused. `kernel`, `simulator` and `verifier` are digests of sources;
# `settings` is empty in every worker that this package starts.
STAMP_KEYS = ("kernel", "simulator", "jax", "libtpu", "settings", "verifier")
# What an answer does not depend on: a better simulator does not undo what a TPU took, and a
# stricter verifier no time.
_IGNORED: dict[Method, tuple[str, ...]] = {
    Fidelity.ANALYTICAL: ("verifier",),
    Fidelity.SIMULATED: ("verifier",),
    Fidelity.MEASURED: ("simulator", "verifier"),
    Correctness.INTERPRETED: ("simulator",),
}


def stamp_of(
    provenance: Mapping[str, Any], fidelity: Method = Fidelity.SIMULATED
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
      ValueError: It is damaged, or is not an evaluation.
    """
    try:
        candidate = Candidate.from_dict(data["candidate"])
        if candidate.digest != data["digest"]:
            raise ValueError(f"digest is {candidate.digest}, but the line says {data['digest']}")
        return Evaluation(
            candidate=candidate,
            fidelity=method_of(_of(str, data["fidelity"])),
            status=Status(data["status"]),
            detail=_of(str, data["detail"]),
            time_us=None if data["time_us"] is None else _time(data["time_us"]),
            batch_us=tuple(map(_time, _of(list, data["batch_us"]))),
            metrics=_of(dict, data["metrics"]),
            provenance=_of(dict, data["provenance"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not an evaluation: a field is missing or of the wrong type") from error


def _of(kind: type[Kind], value: object) -> Kind:
    if not isinstance(value, kind):
        raise ValueError(f"not an evaluation: {value!r:.40} is no {kind.__name__}")
    return value


def _time(value: object) -> float:
    if type(value) not in (int, float) or not abs(value) < _LONGEST_US:  # type: ignore[arg-type]
        raise ValueError(f"not an evaluation: {value!r:.40} is no time")
    return value  # type: ignore[return-value]


def decode(line: bytes) -> Evaluation:
    """Reads one line.

    Raises:
      ValueError: The line is damaged, or is not an evaluation.
    """
    return from_dict(json.loads(line))
