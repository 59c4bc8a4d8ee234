"""From a spec to a workload: read or draw requests, serve them, keep representative steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rpa_tune.capture.reader import load_recording
from rpa_tune.errors import TraceError
from rpa_tune.workload.arrivals import Process
from rpa_tune.workload.batches import WeightedBatch, Workload
from rpa_tune.workload.compress import Compression, compress
from rpa_tune.workload.cost import ProxyCosts, StepCosts
from rpa_tune.workload.engine import EngineStats, SimulatedEngine
from rpa_tune.workload.facts import TraceFacts
from rpa_tune.workload.request import Request, deal
from rpa_tune.workload.spec import CaptureSource, TraceSource, WorkloadSpec
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.synthetic import Synthetic
from rpa_tune.workload.trace import TraceRules, load_trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Every step of a workload, before compression.

    Attributes:
      spec: What was asked for; `source` says what the trace added to it.
      steps: Launches in order: all of them, or the steady part.
      num_all_steps: Launches with the ramps, as far as they were served.
      stats: The engine's counts, ramps included, at that point; None for a recording.
      requests: What was served; empty for a recording.
      dropped: Reason -> rows or launches left out.
      facts: As what a trace was recognised; None without one.
    """

    spec: WorkloadSpec
    steps: tuple[EngineStep, ...]
    num_all_steps: int
    stats: EngineStats | None
    requests: tuple[Request, ...]
    dropped: Mapping[str, int]
    facts: TraceFacts | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """A workload and what it was made from, for reports.

    Attributes:
      workload: The batches kept.
      served: The steps that they stand for.
      compression: Which steps were kept, and the error.
    """

    workload: Workload
    served: Served
    compression: Compression


def build_workload(
    spec: WorkloadSpec, *, costs: StepCosts | None = None, to_the_end: bool = True
) -> Build:
    """Makes a workload.

    Args:
      spec: What to make.
      costs: What compression must preserve; None for the analytical proxy.
      to_the_end: As in `serve`.

    Raises:
      TraceError: A file cannot be read or holds nothing.
    """
    return condense(serve(spec, to_the_end=to_the_end), costs=costs)


def condense(served: Served, *, costs: StepCosts | None = None) -> Build:
    """Keeps the batches that stand for steps; `costs` as in `build_workload`."""
    spec = served.spec
    compression = compress(
        served.steps,
        spec.compress.batches or len(served.steps),
        costs or ProxyCosts(block_size=spec.knobs.block_size),
    )
    return Build(workload=_workload(served, compression), served=served, compression=compression)


def serve(spec: WorkloadSpec, *, ranks: int = 1, to_the_end: bool = True) -> Served:
    """Reads the recorded steps, or lets the engine make them from requests.

    Args:
      spec: What to serve.
      ranks: Engines that share the requests (`Arrivals.share`); the steps are those of one.
        Recorded steps are one rank's already.
      to_the_end: Whether to serve on, for the counts alone, where no later step is kept. An engine
        of a small budget is busy for ten times as long after the last request has come.

    Raises:
      TraceError: A file cannot be read or holds nothing.
    """
    if isinstance(spec.requests, CaptureSource):
        served = _replay(spec, spec.requests)
    else:
        served = _simulate(spec, spec.requests, ranks, to_the_end)
    steps = served.steps
    if spec.decode_query_size > 1:
        steps = tuple(step.with_decode_slot(spec.decode_query_size) for step in steps)
    if spec.chunk_prefill_size is not None:
        steps = tuple(step.with_prefill_slot(spec.chunk_prefill_size) for step in steps)
    return replace(served, steps=steps)


def _simulate(
    spec: WorkloadSpec, source: TraceSource | Synthetic, ranks: int, to_the_end: bool
) -> Served:
    dropped: Mapping[str, int] = {}
    facts = None
    max_model_len = spec.knobs.max_model_len
    if isinstance(source, TraceSource):
        rules = TraceRules(
            max_model_len=max_model_len,
            drop_bad=source.drop_bad,
            limit=source.limit,
            time_unit=source.time_unit,
            block_tokens=source.block_tokens,
            turns=source.turns,
        )
        trace = load_trace(source.trace, rules)
        requests, dropped, facts = trace.requests, trace.dropped, trace.facts
        if not source.is_shipped:
            spec = replace(spec, source=f"{spec.source} ({facts})")
    else:
        requests = source.requests(max_model_len=max_model_len, seed=spec.seed)
    if facts is None or not facts.has_times:
        spec = _without_times(spec, "the trace has" if facts else "synthetic requests have")
    arrivals, hands = spec.arrivals.share(ranks)
    requests = arrivals.apply(requests, seed=spec.seed)
    if hands > 1:
        requests = deal(requests, hands)
        what = "conversation in" if any(r.after is not None for r in requests) else "request in"
        spec = replace(spec, source=f"{spec.source}; one {what} {hands}, as a rank gets them")
    engine = SimulatedEngine(
        requests, spec.knobs, max_concurrency=arrivals.max_concurrency, seed=spec.seed
    )
    steps, num_all_steps = _run(engine, len(requests), spec.compress.steady_state, to_the_end)
    return Served(
        spec=spec,
        steps=steps,
        num_all_steps=num_all_steps,
        stats=engine.stats,
        requests=requests,
        dropped=dropped,
        facts=facts,
    )


def _without_times(spec: WorkloadSpec, who: str) -> WorkloadSpec:
    """Says that all requests arrive at once, where the spec does not.

    Raises:
      TraceError: Their times, or a rate of them, are asked for.
    """
    arrivals = spec.arrivals
    if arrivals.process is Process.TRACE or (arrivals.process is None and arrivals.request_rate):
        wanted = "process: trace" if arrivals.process else f"request_rate: {arrivals.request_rate}"
        raise TraceError(
            f"{who} no times, which `{wanted}` needs",
            where=spec.requests.trace if isinstance(spec.requests, TraceSource) else spec.name,
            hint="choose an arrival process: {}, {} or {}",
            settings=(
                "arrivals: {process: poisson, request_rate: 1}",
                "arrivals: {process: closed_loop, max_concurrency: 32}",
                "arrivals: {process: at_once, request_rate: null}",
            ),
        )
    if arrivals.process is None:
        return replace(spec, source=f"{spec.source}; {who} no times: all arrive at once")
    return spec


def _replay(spec: WorkloadSpec, source: CaptureSource) -> Served:
    if spec.compress.page_tables == "engine":
        raise TraceError(
            "a recording has no page tables", where=source.capture, hint="use page_tables: drawn"
        )
    recording = load_recording(Path(source.capture), drop_bad=source.drop_bad)
    return Served(
        spec=spec,
        steps=recording.steps,
        num_all_steps=len(recording.steps),
        stats=None,
        requests=(),
        dropped=recording.dropped,
    )


def _run(
    engine: SimulatedEngine, num_requests: int, steady_state: bool, to_the_end: bool
) -> tuple[tuple[EngineStep, ...], int]:
    """(Steps between the ramps, or all if there are none or all are wanted; number of all)."""
    steps, steady = [], []
    for step in engine.run():
        steps.append(step)
        if num_requests // 10 <= engine.num_arrived < num_requests:
            steady.append(step)
        elif steady_state and steady and not to_the_end:
            break
    return tuple(steady if steady_state and steady else steps), len(steps)


def _workload(served: Served, compression: Compression) -> Workload:
    spec = served.spec
    tables = spec.compress.page_tables
    keep_tables = tables == "engine" or (tables is None and served.stats is not None)
    return Workload(
        name=spec.name,
        source=spec.source,
        batches=tuple(
            WeightedBatch(
                batch=served.steps[i].batch(
                    page_seed=i, block_size=spec.knobs.block_size if keep_tables else None
                ),
                weight=weight,
            )
            for i, weight in zip(compression.indices, compression.weights, strict=True)
        ),
    )
