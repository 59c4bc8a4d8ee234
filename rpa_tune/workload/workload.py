"""A workload: the weighted batches that configs are judged on, and where they come from.

The top of the package: `load_workload` is what sweeps and commands call. A name, file or mapping
becomes requests, requests become engine steps, steps become a few weighted batches.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch

from rpa_tune.errors import TraceError, UsageError
from rpa_tune.workload.compress import Compression, compress
from rpa_tune.workload.cost import ProxyCosts, StepCosts
from rpa_tune.workload.engine import Engine, EngineStats, Step
from rpa_tune.workload.fields import did_you_mean
from rpa_tune.workload.spec import (
    TraceSource,
    WorkloadSpec,
    load_presets,
    preset_mapping,
    read_spec,
)
from rpa_tune.workload.trace import TraceRules, load_trace

SCHEMA = "rpa-workload/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedBatch:
    """One batch and how often it is launched.

    Attributes:
      batch: Lengths of one launch.
      weight: Share of launches, above 0.
    """

    batch: Batch
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Batches that stand for what a server launches.

    Attributes:
      name: Preset name, file, or what a person called it.
      source: What it is and where it comes from, in words.
      batches: Batches with weights that sum to 1.
    """

    name: str
    source: str
    batches: tuple[WeightedBatch, ...]

    def __post_init__(self) -> None:
        """Refuses weights that are no shares.

        Raises:
          ValueError: No batches, a weight that is not above 0, or a sum that is not 1.
        """
        if not self.batches:
            raise ValueError(f"workload {self.name!r} has no batches")
        if min(wb.weight for wb in self.batches) <= 0:
            raise ValueError(f"workload {self.name!r} has a weight that is not above 0")
        total = sum(wb.weight for wb in self.batches)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"workload {self.name!r} has weights that sum to {total}, not 1")

    @property
    def digest(self) -> str:
        """16 hex digits over batches and weights: its identity in a store.

        Name and source are left out, so that renaming does not lose answers.
        """
        content = self.to_dict()["batches"]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in a batch."""
        return max(len(wb.batch.q_lens) for wb in self.batches)

    @property
    def max_num_tokens(self) -> int:
        """Most new tokens in a batch."""
        return max(sum(wb.batch.q_lens) for wb in self.batches)

    @property
    def max_context_tokens(self) -> int:
        """Longest context of a sequence."""
        return int(max(max(wb.batch.kv_lens) for wb in self.batches))

    def num_pages(self, page_size: int) -> int:
        """Pages that a KV cache needs to hold any of the batches."""
        return max(_pages_needed(wb.batch, page_size) for wb in self.batches)

    def for_family(self, family: str) -> "Workload":
        """The batches in which `family` has sequences, weights renormalised.

        Sequences that other families serve stay in the batches: launches chain over one set of
        arrays, so a kernel sees (and skips) them in a server too.

        Raises:
          ValueError: No batch launches `family`.
        """
        kept = [wb for wb in self.batches if len(wb.batch.family_seqs(family))]
        if not kept:
            raise ValueError(f"workload {self.name!r} never launches family {family!r}")
        total = sum(wb.weight for wb in kept)
        return replace(self, batches=tuple(replace(wb, weight=wb.weight / total) for wb in kept))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` reads it back."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "source": self.source,
            "batches": [
                {
                    "weight": wb.weight,
                    "q_lens": list(wb.batch.q_lens),
                    "kv_lens": list(wb.batch.kv_lens),
                    "num_decode": wb.batch.num_decode,
                    "num_prefill": wb.batch.num_prefill,
                    "page_seed": wb.batch.page_seed,
                    "page_table": wb.batch.page_table and [list(r) for r in wb.batch.page_table],
                }
                for wb in self.batches
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Workload":
        """Reads the JSON form.

        Raises:
          ValueError, KeyError, TypeError: The data is not a workload.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r} is not {SCHEMA!r}")
        return cls(
            name=data["name"],
            source=data["source"],
            batches=tuple(_weighted_batch(entry) for entry in data["batches"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """A workload and what it was made from, for reports.

    Attributes:
      spec: What was asked for.
      workload: What came out.
      steps: Every step that the workload stands for.
      compression: Which of them were kept, and the error.
      stats: The engine's counts over the whole run, ramps included.
      num_requests: Requests served.
      dropped: Reason -> trace rows left out.
    """

    spec: WorkloadSpec
    workload: Workload
    steps: tuple[Step, ...]
    compression: Compression
    stats: EngineStats
    num_requests: int
    dropped: Mapping[str, int]


def load_workload(spec: str | Mapping[str, Any], *, page_size: int) -> Workload:
    """Makes a workload from a preset name, a file, or a mapping.

    Args:
      spec: A preset (`presets.yaml`); a path to a request trace (CSV or JSON Lines, served by an
        engine with default knobs) or to a workload file; or a mapping as `spec.py` describes.
      page_size: Tokens in a KV cache page.

    Raises:
      UsageError: An unknown name or a bad mapping.
      TraceError: A bad file.
    """
    if isinstance(spec, str) and spec not in load_presets():
        path = Path(spec)
        if path.is_file() and (stored := _read_workload_file(path)):
            return stored
    return build_workload(resolve(spec, page_size=page_size)).workload


def resolve(spec: str | Mapping[str, Any], *, page_size: int) -> WorkloadSpec:
    """Turns a preset name, a trace's path or a mapping into a spec.

    Raises:
      UsageError: An unknown name or a bad mapping.
    """
    if not isinstance(spec, str):
        return read_spec(spec, page_size=page_size)
    if spec in load_presets():
        return read_spec(preset_mapping(spec), page_size=page_size, where=f"preset {spec}")
    if Path(spec).is_file():
        mapping = {"name": spec, "requests": {"trace": spec}}
        return read_spec(mapping, page_size=page_size, where=spec)
    raise UsageError(
        f"unknown workload {spec!r}: neither a preset nor a file",
        hint=did_you_mean(spec, load_presets()),
    )


def build_workload(spec: WorkloadSpec, *, costs: StepCosts | None = None) -> Build:
    """Serves the requests and keeps representative batches.

    Args:
      spec: What to make.
      costs: What compression must preserve; None for the analytical proxy.

    Raises:
      TraceError: The trace cannot be read, or leaves no steps.
    """
    dropped: Mapping[str, int] = {}
    max_model_len = spec.knobs.max_model_len
    if isinstance(spec.requests, TraceSource):
        rules = TraceRules(
            max_model_len=max_model_len,
            drop_bad=spec.requests.drop_bad,
            limit=spec.requests.limit,
        )
        trace = load_trace(spec.requests.trace, rules)
        requests, dropped = trace.requests, trace.dropped
    else:
        requests = spec.requests.requests(max_model_len=max_model_len, seed=spec.seed)
    requests = spec.arrivals.apply(requests, seed=spec.seed)
    engine = Engine(
        requests, spec.knobs, max_concurrency=spec.arrivals.max_concurrency, seed=spec.seed
    )
    steps = _run(engine, len(requests), steady_state=spec.compress.steady_state)
    compression = compress(
        steps,
        spec.compress.batches or len(steps),
        costs or ProxyCosts(block_size=spec.knobs.block_size),
    )
    return Build(
        spec=spec,
        workload=_workload(spec, steps, compression),
        steps=steps,
        compression=compression,
        stats=engine.stats,
        num_requests=len(requests),
        dropped=dropped,
    )


def _run(engine: Engine, num_requests: int, *, steady_state: bool) -> tuple[Step, ...]:
    """Every step, or those between the ramps; every step if there is nothing between."""
    steps, kept = [], []
    for step in engine.run():
        steps.append(step)
        if num_requests // 10 <= engine.num_arrived < num_requests:
            kept.append(step)
    return tuple(kept if steady_state and kept else steps)


def _workload(spec: WorkloadSpec, steps: tuple[Step, ...], compression: Compression) -> Workload:
    keep_tables = spec.compress.page_tables == "engine"
    return Workload(
        name=spec.name,
        source=spec.source,
        batches=tuple(
            WeightedBatch(
                batch=steps[i].batch(
                    page_seed=i, block_size=spec.knobs.block_size if keep_tables else None
                ),
                weight=weight,
            )
            for i, weight in zip(compression.indices, compression.weights, strict=True)
        ),
    )


def _weighted_batch(entry: Mapping[str, Any]) -> WeightedBatch:
    table = entry.get("page_table")
    return WeightedBatch(
        batch=Batch(
            q_lens=tuple(entry["q_lens"]),
            kv_lens=tuple(entry["kv_lens"]),
            num_decode=entry["num_decode"],
            num_prefill=entry.get("num_prefill", 0),
            page_table=None if table is None else tuple(tuple(row) for row in table),
            page_seed=entry.get("page_seed", 0),
        ),
        weight=entry["weight"],
    )


def _pages_needed(batch: Batch, page_size: int) -> int:
    if batch.page_table is not None:
        return 1 + max(max(row) for row in batch.page_table)
    return sum(-(-kv // page_size) for kv in batch.kv_lens)


def _read_workload_file(path: Path) -> Workload | None:
    """A stored workload, or None when the file is something else.

    Raises:
      TraceError: It says that it is a workload, and is not a good one.
    """
    if path.suffix != ".json":
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    if not isinstance(data, dict) or "schema" not in data:
        return None
    try:
        return Workload.from_dict(data)
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"not a workload: {error}", where=str(path)) from error
