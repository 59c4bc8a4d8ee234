"""The face of the package: `load_workload` is what sweeps and commands call.

A name, file or mapping becomes requests (`trace`, `synthetic`), requests become engine steps
(`engine`), steps become a few weighted batches (`compress`). Recordings of a live engine and
stored workloads skip what they have no need of. Names with weights become one workload that
stands for all of them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.capture.reader import is_recording
from rpa_tune.errors import TraceError, UsageError
from rpa_tune.workload.batches import WeightedBatch, Workload, combine
from rpa_tune.workload.build import build_workload
from rpa_tune.workload.spec import (
    KEYS,
    CaptureSource,
    WorkloadSpec,
    load_presets,
    over_preset,
    preset_mapping,
    read_spec,
)

__all__ = ["WeightedBatch", "Workload", "load_workload", "resolve"]


def load_workload(spec: str | Path | Mapping[str, Any], *, page_size: int) -> Workload:
    """Makes a workload from a preset name, a file, or a mapping.

    Args:
      spec: A preset (`presets.yaml`); a path to a request trace (CSV, JSON, JSON Lines; served by
        an engine with default knobs), to a recording (`rpa_tune.capture`) or to a stored workload
        (`rpa-tune workloads import`); a mapping as `spec.py` describes; or a weighted set of
        names and paths, `{azure-conv: 0.7, azure-code: 0.3}`.
      page_size: Tokens in a KV cache page.

    Raises:
      UsageError: An unknown name or a bad mapping.
      TraceError: A bad file.
    """
    spec = check_spec(spec)
    if isinstance(spec, Mapping) and is_weighted_set(spec):
        weights = [_weight(name, weight) for name, weight in spec.items()]
        parts = [load_workload(name, page_size=page_size) for name in spec]
        return combine(parts, weights)
    stored = load_stored(spec) if isinstance(spec, str) else None
    if stored is not None:
        return stored
    return build_workload(resolve(spec, page_size=page_size), to_the_end=False).workload


def check_spec(spec: object) -> str | Mapping[str, Any]:
    """What stands for a workload; a path as text.

    Raises:
      UsageError: Nothing that can.
    """
    if isinstance(spec, Path):
        return str(spec)
    if not isinstance(spec, str | Mapping):
        raise UsageError(
            f"a workload is the name of a preset, a file or a mapping, got {spec!r}",
            where="workload",
            hint=did_you_mean("", load_presets(), what="presets"),
        )
    return spec


def is_weighted_set(spec: Mapping[str, Any]) -> bool:
    """Whether a mapping gives weights to workloads rather than describing one."""
    has_number = any(isinstance(value, int | float) for value in spec.values())
    return has_number and not set(spec) & set(KEYS)


def _weight(name: str, weight: object) -> float:
    """The weight of one workload of a set.

    Raises:
      UsageError: It is no number above zero.
    """
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < math.inf:  # type: ignore[operator]
        raise UsageError(
            f"the weight of workload {name!r} must be a number above 0, got {weight!r}",
            hint=f"a workload is a mapping with the keys {', '.join(KEYS)}; "
            "a set gives each name a weight",
        )
    return float(weight)  # type: ignore[arg-type]


def resolve(spec: str | Mapping[str, Any], *, page_size: int) -> WorkloadSpec:
    """Turns a preset name, a path to a trace or recording, or a mapping into a spec.

    Raises:
      UsageError: An unknown name or a bad mapping.
    """
    if not isinstance(spec, str):
        return read_spec(spec, page_size=page_size)
    return read_spec(mapping_of(spec), page_size=page_size, where=f"workload {spec}")


def mapping_of(spec: str) -> dict[str, Any]:
    """The mapping that a preset's name or a path to a trace or recording stands for.

    Raises:
      UsageError: Neither a preset nor a file.
    """
    if spec in load_presets():
        return preset_mapping(spec)
    path = Path(spec)
    if path.is_file():
        kind = "capture" if is_recording(path) else "trace"
        return {"name": spec, "requests": {kind: spec}}
    if find_name(spec, load_presets()):
        return preset_mapping(spec)
    raise UsageError(
        f"unknown workload {spec!r}: neither a preset nor a file",
        hint=did_you_mean(spec, load_presets()),
    )


def requests_of(
    workload: str | Path | Mapping[str, Any], page_size: int
) -> Mapping[str, Any] | None:
    """The mapping of a workload that an engine serves; None for one that has its batches.

    Raises:
      UsageError: An unknown name or a bad mapping.
    """
    workload = check_spec(workload)
    if isinstance(workload, str):
        if load_stored(workload) is not None:
            return None
        workload = mapping_of(workload)
    if is_weighted_set(workload):
        return None
    mapping = over_preset(workload)
    spec = read_spec(mapping, page_size=page_size)
    return None if isinstance(spec.requests, CaptureSource) else mapping


def load_stored(spec: str) -> Workload | None:
    """The workload in a JSON file that says it is one, else None.

    Raises:
      TraceError: It says that it is a workload, and is not a good one.
    """
    path = Path(spec)
    if path.suffix != ".json" or spec in load_presets() or not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # whatever reads it as a trace says what is wrong
    if not isinstance(data, dict) or "schema" not in data:
        return None
    try:
        return Workload.from_dict(data)
    except ValueError as error:
        raise TraceError(
            f"not a workload: {error}",
            where=spec,
            hint="make one with `rpa-tune workloads import`",
        ) from error
