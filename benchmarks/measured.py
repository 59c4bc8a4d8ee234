"""The public measured rows: what was timed, and what its launch does.

Times are in `data/measured_rpa.json`, `data/measured_rpa_2.jsonl` and
`data/measured_tokamax.jsonl` (`tokamax_rows.py` makes it). What each launch does, its bundles,
copies and waits without their times, is in `data/recordings.zip`: made once by
`record_measured.py` from the schedules that the compiler gives the public kernels, checked against
the digests in its manifest, and timed again in milliseconds under any machine.
"""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch
from rpa_tune.errors import UsageError
from rpa_tune.interop.measured_rows import (
    MANIFEST,
    Recordings,
    call_digest,
    keep_recordings,
)
from rpa_tune.interop.records import Record, load_records
from rpa_tune.llo.calibrate import Observation

DATA = Path(__file__).parent / "data"
RECORDS = DATA / "measured_rpa.json"
ROWS = DATA / "measured_rpa_2.jsonl"
TOKAMAX = DATA / "measured_tokamax.jsonl"
RECORDINGS = DATA / "recordings.zip"
_LEAST_BLOCK_TOKENS = 256
_FEW_QUERIES = 16  # tokens a sequence; steps that verify drafts have the shape of decode


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured time.

    Attributes:
      name: `v3-0`, `sglang-5`, `stacked-3`, `tokamax-7`: its source, and its place in the file.
      chip: Name in the chip table.
      part: `decode`, `prefill`, or `dense`: attention without a cache.
      source: Whose kernel; all rows of one are left out together to judge a form.
      group: Rows too alike to predict each other: the same kernel on the same heads.
      label: Heads, page size, sequences, blocks.
      measured_us: Time.
      is_device_time: Whether the kernel alone was timed.
      origin: Where the time was published.
      assumed: What the source does not say.
      left_out: Why the row is not used; empty if it is.
      is_fitted: Whether it may take part in a fit. Rows of tokamax do so on v5p alone, where there
        are no others: elsewhere they test what was fitted to other sources.
      contents: The record or the line of the file.
      call: Digest of what was called.
    """

    name: str
    chip: str
    part: str
    source: str
    group: str
    label: str
    measured_us: float
    is_device_time: bool
    origin: str
    assumed: str
    contents: Any
    call: str
    left_out: str = ""
    is_fitted: bool = True


def load_rows() -> tuple[Row, ...]:
    """Every row handed over."""
    lines = [json.loads(line) for line in ROWS.read_text().splitlines()]
    tokamax = [json.loads(line) for line in TOKAMAX.read_text().splitlines()]
    return (
        *map(_of_record, load_records(RECORDS)),
        *map(_of_line, range(len(lines)), lines),
        *map(_of_tokamax, range(len(tokamax)), tokamax),
    )


def _of_record(record: Record) -> Row:
    problem, heads = record.problem, f"{record.problem.num_q_heads}/{record.problem.num_kv_heads}"
    is_decode = max(record.batch.q_lens) <= _FEW_QUERIES
    shape = f"{heads} d{problem.head_dim}"
    # Two records have the shapes of sglang-jax's rows.
    is_twin = record.chip == "v6e" and (heads, problem.page_size) == ("4/1", 128)
    return Row(
        name=f"v3-{record.index}",
        chip=record.chip,
        part="decode" if is_decode else "prefill",
        source="tpu-inference v3",
        group=f"heads {heads}" if is_twin else f"v3 {shape}",
        label=(
            f"{shape} p{problem.page_size} n{len(record.batch.q_lens)}"
            f" {'/'.join(map(str, record.blocks))}"
        ),
        measured_us=record.measured_us,
        is_device_time=record.is_device_time,
        origin=record.source,
        assumed=record.assumed,
        contents=record,
        call=call_digest(
            {
                "chip": record.chip,
                "kernel": record.case,
                "problem": record.problem.to_dict(),
                "blocks": record.blocks,
                "batch": _called(record.batch),
            }
        ),
    )


def _of_line(place: int, line: dict[str, Any]) -> Row:
    workload = line["workload"]
    heads = f"{line['num_q_heads']}/{line['num_kv_heads']}"
    is_stacked = "stacked" in line["kernel"]
    context = f" kv{workload['kv_len']}" if is_stacked else ""
    # Neighbouring contexts of one kernel predict each other: every other one is left out.
    half = workload["kv_len"].bit_length() % 2 if is_stacked else 0
    source = "stacked" if is_stacked else "sglang"
    return Row(
        name=f"{source}-{place}",
        chip=line["chip"],
        part=workload["kind"],
        source="tpu-inference stacked" if is_stacked else "sglang-jax",
        group=f"stacked {half}" if is_stacked else f"heads {heads}",
        label=f"{heads} d{line['head_dim']} p{line['page_size']} n{workload['num_seqs']}{context}",
        measured_us=line["measured_us"],
        is_device_time=True,
        origin=line["source"],
        assumed=line["not_recorded"] or "",
        contents=line,
        call=call_digest(line),
    )


def _of_tokamax(place: int, line: dict[str, Any]) -> Row:
    blocks = "/".join(str(value) for value in line["blocks"].values() if isinstance(value, int))
    if line["kernel"] == "batched_rpa":
        tokens, num_q_heads, head_dim = line["queries"]
        heads = f"{num_q_heads}/{line['num_kv_heads']} d{head_dim}"
        part = "decode" if tokens == line["num_seqs"] else "prefill"
        label = f"{heads} p{line['kv_cache'][1]} n{line['num_seqs']} t{tokens} {blocks}"
        source, group = "tokamax rpa", f"tokamax rpa {heads}"
    else:
        shape = "x".join(map(str, line["q"]))
        kind = ("causal" if line["is_causal"] else "full") + (
            " and residuals" if line["has_residuals"] else ""
        )
        part, label = "dense", f"{line['kernel']} {shape} {kind} {blocks}"
        source = f"tokamax {line['kernel']}"
        group = f"tokamax dense d{line['q'][-1]}"
    return Row(
        name=f"tokamax-{place}",
        chip=line["chip"],
        part=part,
        source=source,
        group=group,
        label=label,
        measured_us=line["measured_us"],
        is_device_time=True,
        origin=f"{line['source']}, entry {line['entry']}",
        assumed=line["not_recorded"],
        left_out=line.get("left_out", ""),
        is_fitted=line["chip"] == "v5p",
        contents=line,
        call=call_digest(line),
    )


# Blocks beside a public winner: KV pages as a share of the winner's.
_OTHER_PAGES = (0.25, 0.5, 2.0)


def load_choices(rows: Iterable[Row]) -> tuple[Row, ...]:
    """What calls with a public winner would be with other blocks: recorded, and never measured.

    sglang-jax timed each call with the blocks that its table has for it, found by measuring.
    """
    found = []
    for row in rows:
        if row.source != "sglang-jax" or row.part != "decode" or "n256" in row.label:
            continue  # a call of 256 sequences has the blocks of 128
        pages = row.contents["block_sizes"]["bkv_p"]
        for other in (int(pages * share) for share in _OTHER_PAGES):
            if other * row.contents["page_size"] < _LEAST_BLOCK_TOKENS:
                continue
            blocks = row.contents["block_sizes"] | {"bkv_p": other, "bkv_sz": None}
            contents = row.contents | {"block_sizes": blocks}
            name = f"{row.name}/{other}"
            found.append(replace(row, name=name, contents=contents, call=call_digest(contents)))
    return tuple(found)


def recorded_names() -> set[str]:
    """Names of the rows that have a recording."""
    with zipfile.ZipFile(RECORDINGS) as archive:
        return set(archive.namelist()) - {MANIFEST}


def load_observations(rows: tuple[Row, ...]) -> tuple[dict[str, Observation], dict[str, Any]]:
    """What the rows' launches do, by name, as far as they were recorded; and the manifest.

    Raises:
      UsageError: The file is missing or damaged, or was made of other calls than the rows'.
    """
    recordings = Recordings(RECORDINGS)
    found = {}
    for row in rows:
        if (launches := recordings.launches(row.name)) is None:
            continue
        if recordings.manifest["calls"][row.name] != row.call:
            raise UsageError(
                f"{row.name} was recorded of another call than the row says",
                where=str(RECORDINGS),
                hint=f"python benchmarks/record_measured.py --row {row.name} --again",
            )
        found[row.name] = Observation(
            label=row.name, launches=launches, measured_us=row.measured_us, group=row.group
        )
    return found, recordings.manifest


def keep(contents: dict[str, bytes], versions: dict[str, str]) -> None:
    """Writes recordings of rows."""
    rows = load_rows()
    calls = {row.name: row.call for row in (*rows, *load_choices(rows))}
    keep_recordings(RECORDINGS, contents, versions, calls)


def _called(batch: Batch) -> dict[str, Any]:
    """A batch as digests of calls know it: without what came later, where that is off."""
    found = asdict(batch)
    return {name: value for name, value in found.items() if name != "cache_only" or value}
