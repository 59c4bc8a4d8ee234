"""What a workload is made of: the mapping in `presets.yaml` or in a sweep's `workload:` entry.

```
requests:                    where requests come from: a trace ...
  {trace: azure-conv, limit: 2000, drop_bad: true}
  {trace: mine.jsonl, time_unit: ms, block_tokens: 16, turns: full}    where the file does not say
requests:                    ... a recording of a live engine (then no arrivals and no engine) ...
  {capture: steps.jsonl}
requests:                    ... or length distributions
  {count: 2000, prompt_tokens: {lognormal: {median: 800, sigma: 1.0}}, output_tokens: 200}
arrivals: {process: poisson, request_rate: 12}
engine: {max_num_seqs: 64, max_num_batched_tokens: 1024, max_model_len: 8192}
compress: {batches: 16}
chunk_prefill_size: 512      sequences with so many new tokens are for the prefill family
decode_query_size: 4         sequences with at most so many are for the decode family
seed: 0
```

`preset: NAME` starts from a preset; what else is given replaces it, section by section and knob
by knob.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from rpa_kernels.names import did_you_mean, find_name
from rpa_kernels.problem import MAX_DECODE_QUERY
from rpa_tune.errors import UsageError
from rpa_tune.workload.arrivals import Arrivals
from rpa_tune.workload.fields import check_keys, read_record
from rpa_tune.workload.knobs import SGLANG_NAMES, EngineKnobs
from rpa_tune.workload.lengths import read_lengths
from rpa_tune.workload.synthetic import Synthetic
from rpa_tune.workload.trace import TRACES
from rpa_tune.workload.trace_times import UNITS_PER_S
from rpa_tune.workload.turns import TURNS

SECTIONS = ("requests", "arrivals", "engine", "compress")
KEYS = ("name", "preset", "about", "source", *SECTIONS, "chunk_prefill_size",
        "decode_query_size", "seed")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSource:
    """Requests from a trace.

    Attributes:
      trace: A shipped trace's name or a path.
      limit: Requests to take from its start; None for all.
      drop_bad: Skip bad rows and count them.
      time_unit: Unit of numeric times, `s`, `ms`, `us` or `ns`; None for what the file says.
      block_tokens: Tokens that one of the `hash_ids` stands for; None for the format's.
      turns: Whether prompts of later turns hold the turns before (`full`) or what the turn adds
        (`new`), or ids of conversations mean nothing (`apart`); None for what the lengths tell.
    """

    trace: str
    limit: int | None = None
    drop_bad: bool = False
    time_unit: str | None = None
    block_tokens: int | None = None
    turns: str | None = None

    def __post_init__(self) -> None:
        """Refuses a limit that leaves nothing, and what is not a choice."""
        for name in ("limit", "block_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name, known in (("time_unit", UNITS_PER_S), ("turns", TURNS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}")

    @property
    def is_shipped(self) -> bool:
        """Whether it is one of our own, about which presets say enough."""
        return self.trace in TRACES


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureSource:
    """Steps of a live engine.

    Attributes:
      capture: Path of a recording.
      drop_bad: Leave bad launches out and count them.
    """

    capture: str
    drop_bad: bool = False


Requests = TraceSource | CaptureSource | Synthetic


@dataclass(frozen=True, kw_only=True, slots=True)
class Compress:
    """How many batches stand for all steps.

    Attributes:
      batches: Batches kept; 0 keeps every step.
      steady_state: Leave out the steps before the first tenth of the requests has arrived and
        after the last one has: a server seldom starts from empty or runs dry.
      page_tables: `engine`: the pages that the engine gave. `drawn`: pages at random over
        the cache, the worst fragmentation there is. None: `engine` where an engine serves the
        requests, `drawn` for a recording, which has no pages.
    """

    batches: int = 16
    steady_state: bool = True
    page_tables: str | None = None

    def __post_init__(self) -> None:
        """Refuses what is not a choice."""
        if self.batches < 0:
            raise ValueError(f"batches={self.batches} must be at least 0")
        if self.page_tables not in (None, "drawn", "engine"):
            raise ValueError(f"page_tables={self.page_tables!r} must be 'drawn' or 'engine'")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """A workload before it is simulated.

    Attributes:
      name: Preset name, or what the person called it.
      source: Where the lengths come from, in words.
      requests: Trace, recording or distributions.
      arrivals: When they come.
      knobs: The engine.
      compress: How many batches to keep.
      chunk_prefill_size: Sequences with exactly so many new tokens go to the kernel's prefill
        slot, as the attention function's argument of this name says; None for none.
      seed: Of lengths, arrivals, and accepted drafts.
      decode_query_size: Sequences with at most so many new tokens go to the kernel's decode slot,
        as the attention function's argument of this name says.
    """

    name: str
    source: str
    requests: Requests
    arrivals: Arrivals
    knobs: EngineKnobs
    compress: Compress
    chunk_prefill_size: int | None = None
    seed: int = 0
    decode_query_size: int = 1


@cache
def load_presets() -> dict[str, dict[str, Any]]:
    """Name -> mapping of every shipped preset."""
    text = (resources.files("rpa_tune.workload") / "presets.yaml").read_text(encoding="utf-8")
    presets: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return presets


def read_spec(data: Mapping[str, Any], *, page_size: int, where: str = "workload") -> WorkloadSpec:
    """Reads a mapping of the form in the module's docstring.

    Args:
      data: The mapping.
      page_size: Tokens in a page; the engine's `block_size`.
      where: File and line, or other place, for errors.

    Raises:
      UsageError: An unknown key or preset, a missing section, a bad value.
    """
    data = check_keys(data, KEYS, where)
    data = over_preset(data, where)
    if "requests" not in data:
        raise UsageError(
            "missing key 'requests'", where=where, hint="give a trace, lengths, or a preset"
        )
    seed = data.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise UsageError(f"a seed from 0 is needed, got {seed!r}", where=f"{where}.seed")
    chunk = data.get("chunk_prefill_size")
    if chunk is not None and (type(chunk) is not int or chunk < 2):
        raise UsageError(
            f"at least 2 tokens are needed, got {chunk!r}", where=f"{where}.chunk_prefill_size"
        )
    most = data.get("decode_query_size", 1)
    if type(most) is not int or not 1 <= most <= MAX_DECODE_QUERY:
        raise UsageError(
            f"1 to {MAX_DECODE_QUERY} tokens are needed, got {most!r}",
            where=f"{where}.decode_query_size",
        )
    requests = _read_requests(data["requests"], f"{where}.requests")
    if isinstance(requests, CaptureSource) and ("arrivals" in data or "engine" in data):
        raise UsageError("a recording needs neither 'arrivals' nor 'engine'", where=where)
    return WorkloadSpec(
        name=str(data.get("name", "custom")),
        source=str(data.get("source") or _describe(requests)),
        requests=requests,
        arrivals=read_record(Arrivals, data.get("arrivals", {}), f"{where}.arrivals"),
        knobs=_read_knobs(data.get("engine", {}), page_size, f"{where}.engine"),
        compress=read_record(Compress, data.get("compress", {}), f"{where}.compress"),
        chunk_prefill_size=chunk,
        seed=seed,
        decode_query_size=most,
    )


def preset_mapping(name: str, where: str = "") -> dict[str, Any]:
    """The mapping of a preset, its name included.

    Raises:
      UsageError: There is no such preset.
    """
    presets = load_presets()
    found = find_name(name, presets)
    if found is None:
        raise UsageError(
            f"unknown workload {name!r}", where=where, hint=did_you_mean(name, presets)
        )
    return {**over_preset(presets[found], where), "name": found}


def over_preset(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Lays a mapping over the preset it names; without one, a copy.

    Raises:
      UsageError: There is no such preset.
    """
    if "preset" not in data:
        return dict(data)
    changes = {key: value for key, value in data.items() if key != "preset"}
    base = preset_mapping(str(data["preset"]), f"{where}.preset")
    return {**overlay(base, changes), "name": changes.get("name", f"{base['name']}, changed")}


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, sections knob by knob.

    Requests of another kind (a trace over lengths, say) replace the base's as a whole; another
    trace has another source.
    """
    merged = dict(base)
    for key, value in changes.items():
        if key == "requests" and _names_another_trace(value, merged.get(key)):
            merged["source"] = None
        if key == "requests" and _kind(value) not in (None, _kind(merged.get(key))):
            merged["source"] = None
            merged[key] = value
        elif key in SECTIONS and isinstance(value, Mapping):
            merged[key] = {**merged.get(key, {}), **value}
        else:
            merged[key] = value
    return merged


def _names_another_trace(changes: object, base: object) -> bool:
    if not isinstance(changes, Mapping) or not isinstance(base, Mapping):
        return False
    return "trace" in changes and changes["trace"] != base.get("trace")


def _kind(requests: object) -> str | None:
    """Which of the sources a `requests` section names, if any."""
    keys = requests.keys() if isinstance(requests, Mapping) else set()
    return next((key for key in ("trace", "capture", "prompt_tokens") if key in keys), None)


def _read_requests(data: object, where: str) -> Requests:
    if isinstance(data, Mapping) and "trace" in data:
        return read_record(TraceSource, data, where)
    if isinstance(data, Mapping) and "capture" in data:
        return read_record(CaptureSource, data, where)
    if not isinstance(data, Mapping):
        raise UsageError(f"a mapping is needed, got {data!r}", where=where)
    lengths = {}
    for key in ("prompt_tokens", "output_tokens"):
        if key not in data:
            raise UsageError(f"missing key {key!r}, or a 'trace' or 'capture'", where=where)
        lengths[key] = read_lengths(data[key], f"{where}.{key}")
    rest = {key: value for key, value in data.items() if key not in lengths}
    return read_record(Synthetic, rest, where, **lengths)


def _read_knobs(data: object, page_size: int, where: str) -> EngineKnobs:
    """Reads the engine's knobs under vLLM's or SGLang's names."""
    names = [name for name in EngineKnobs.__dataclass_fields__ if name != "block_size"]
    known = [*names, "block_size", *SGLANG_NAMES, "max_total_tokens"]
    data = check_keys(data, known, where)
    knobs: dict[str, Any] = {}
    for key, value in data.items():
        if key == "max_total_tokens":
            continue
        name = SGLANG_NAMES.get(key, key)
        if name in knobs:
            raise UsageError(f"{key!r} and {name!r} are the same knob", where=where)
        knobs[name] = value
    if "max_total_tokens" in data:
        knobs["num_gpu_blocks"] = _pages_of_cache(data["max_total_tokens"], page_size, where)
    block_size = knobs.pop("block_size", page_size)
    if block_size != page_size:
        raise UsageError(
            f"block_size={block_size} differs from the problem's page_size={page_size}",
            where=f"{where}.block_size",
            hint="leave block_size out: the workload follows the problem's page size",
        )
    return read_record(EngineKnobs, knobs, where, block_size=page_size)


def _pages_of_cache(tokens: object, page_size: int, where: str) -> int:
    """Pages of a KV cache of so many tokens, and the null page."""
    if type(tokens) is not int or tokens < page_size:
        raise UsageError(
            f"at least page_size={page_size} tokens are needed, got {tokens!r}",
            where=f"{where}.max_total_tokens",
        )
    return 1 + tokens // page_size


def _describe(requests: Requests) -> str:
    if isinstance(requests, TraceSource):
        return f"trace {requests.trace}"
    if isinstance(requests, CaptureSource):
        return f"recording {requests.capture}"
    return f"{requests.count} synthetic requests"
