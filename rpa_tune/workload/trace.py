"""Request traces: CSV or JSON Lines files of lengths and times, plain or gzipped, to requests.

A trace is recognised by its column names (`columns.py`). Rows become drafts (`draft.py`,
`messages.py`); when all are there, the file says in which unit its times are (`trace_times.py`),
how long its hashed blocks (`blocks.py`), and which rows are turns of one conversation (`turns.py`).
What was recognised is in `Trace.facts`, and what cannot be known is an error and no guess.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.errors import TraceError
from rpa_tune.workload.blocks import settle_blocks
from rpa_tune.workload.columns import TraceFormat, plain, recognise
from rpa_tune.workload.draft import BadFieldError, Draft, Layout, Refusals, too_long
from rpa_tune.workload.facts import TraceFacts
from rpa_tune.workload.messages import MessageReader, messages_column
from rpa_tune.workload.request import Request
from rpa_tune.workload.text_tree import TextTree
from rpa_tune.workload.trace_file import Row, iterate_rows, read_text
from rpa_tune.workload.trace_times import settle_times
from rpa_tune.workload.turns import link_turns, settle_texts

TRACES = {
    "azure-conv": "azure_conv_2023.csv.gz",
    "azure-code": "azure_code_2023.csv.gz",
    "mooncake": "mooncake_conversation.csv.gz",
}
# The files' own names.
OTHER_NAMES = {file.removesuffix(".csv.gz"): name for name, file in TRACES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceRules:
    """What a request must be, what happens to one that is not, and what the file does not say.

    Attributes:
      max_model_len: Prompts must be shorter, so that one output token fits.
      drop_bad: Leave bad rows out and count them, instead of refusing the file.
      limit: Requests to read, counted from the start of the file; None for all.
      time_unit: Unit of numeric times: `s`, `ms`, `us` or `ns`; None for the file's own.
      block_tokens: What one of the `hash_ids` stands for; None for the format's own.
      turns: What prompts of later turns count: `full` for the conversation before them as well,
        `new` for what the turn adds; `apart` when ids of conversations mean nothing; None for
        what the lengths tell.
    """

    max_model_len: int
    drop_bad: bool = False
    limit: int | None = None
    time_unit: str | None = None
    block_tokens: int | None = None
    turns: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Requests of one file.

    Attributes:
      name: The shipped trace's name, or the file's path.
      requests: In order of arrival, the first at 0 s; a turn after the one before it.
      dropped: Reason -> rows left out for it.
      facts: As what the file was recognised.
    """

    name: str
    requests: tuple[Request, ...]
    dropped: Mapping[str, int]
    facts: TraceFacts


def load_trace(name_or_path: str | Path, rules: TraceRules) -> Trace:
    """Reads a shipped trace by name, or a file.

    Raises:
      TraceError: No such file, an unknown format, a bad row while `rules.drop_bad` is off, with
        the line and the column; or a unit, a size of blocks or a meaning of turns that neither
        the file nor the rules tell.
    """
    name = str(name_or_path)
    source: Path | Traversable = Path(name_or_path)
    # A file of that name comes first, unless the name is the trace's very own.
    shipped = (
        name if name in TRACES or Path(name).exists() else find_name(name, TRACES, OTHER_NAMES)
    )
    if shipped is not None and shipped in TRACES:
        name, source = shipped, resources.files("rpa_tune.workload") / "traces" / TRACES[shipped]
    text = read_text(name, source, did_you_mean(name, TRACES, OTHER_NAMES, what="traces"))
    try:
        return _Reading(name, rules).read(text)
    except TraceError as error:
        if error.where:
            raise
        error.where = name
        raise


class _Reading:
    """One file on its way from rows to requests."""

    def __init__(self, name: str, rules: TraceRules) -> None:
        self._name = name
        self._rules = rules
        self._refusals = Refusals(drop_bad=rules.drop_bad)
        self._tree = TextTree()
        self._messages = MessageReader(self._tree, self._refusals.dropped)
        self._layout = Layout.of({})
        self._columns: set[str] = set()
        self._known = recognise(())
        self._seen: set[tuple[str, ...]] = set()
        self._has_messages = False

    def read(self, text: str) -> Trace:
        """Reads all of it."""
        drafts = self._drafts(text)
        known = self._known
        self._require(drafts)
        in_file = [draft.time for draft in drafts if draft.time is not None]
        drafts, unit = settle_times(
            drafts, self._layout, known, self._rules.time_unit, self._refusals
        )
        num_orphans = link_turns(drafts, self._layout, self._rules.turns)
        drafts, block_tokens = settle_blocks(
            drafts, self._tree, known, self._rules.block_tokens, self._refusals
        )
        drafts, turns = settle_texts(
            drafts, self._tree, self._rules.turns or known.turns, self._rules.max_model_len,
            self._refusals,
        )  # fmt: skip
        arrivals = self._arrivals(drafts) if unit.unit else dict.fromkeys(map(id, drafts), 0.0)
        drafts = [draft for draft in drafts if id(draft) in arrivals]
        self._require(drafts)
        requests = _requests(drafts, arrivals, self._tree)
        facts = TraceFacts(
            format=known.name,
            time_unit=unit.unit,
            time_basis=unit.basis,
            span_s=requests[-1].arrival_s,
            num_requests=len(requests),
            num_moved=sum(b < a for a, b in itertools.pairwise(in_file)),
            block_tokens=block_tokens,
            turns=turns.kind,
            num_conversations=turns.num_conversations,
            num_cut_turns=turns.num_cut,
            num_orphans=num_orphans,
            num_other_parts=self._messages.num_other_parts,
            is_estimated=self._has_messages,
        )
        return Trace(
            name=self._name, requests=requests, dropped=dict(self._refusals.dropped), facts=facts
        )

    def _drafts(self, text: str) -> list[Draft]:
        """Rows one by one, up to the limit."""
        limit = math.inf if self._rules.limit is None else self._rules.limit
        drafts: list[Draft] = []
        for place, row in iterate_rows(self._name, text):
            self._look_at(row)
            try:
                for draft in self._drafts_of(place, row):
                    if draft.prompt >= self._rules.max_model_len:
                        error = too_long(
                            self._layout.prompt or "", draft.prompt, self._rules.max_model_len
                        )
                        self._refusals.refuse(draft.place, error)
                        continue
                    drafts.append(draft)
            except BadFieldError as error:
                self._refusals.refuse(place, error)
            if len(drafts) >= limit:
                return drafts[: int(limit)]
        return drafts

    def _look_at(self, row: Row) -> None:
        """Learns the columns that no row before had."""
        keys = tuple(row)
        if keys not in self._seen:
            self._seen.add(keys)
            self._columns |= {plain(name) for name in row if name}
            self._known = recognise(self._columns)
            self._layout = self._layout.joined(Layout.of(row))

    def _drafts_of(self, place: str, row: Row) -> list[Draft]:
        layout = self._layout
        if messages_column(row) and not (layout.prompt and row.get(layout.prompt)):
            self._has_messages = True
            return self._messages.drafts(place, row, layout)
        layout.require_lengths(row, place)
        if _is_failure(self._known, row, layout):
            self._refusals.dropped["failed request"] += 1
            return []
        return [layout.draft(place, row)]

    def _arrivals(self, drafts: Sequence[Draft]) -> dict[int, float]:
        """Seconds of each draft, by its `id`: its own time, and no sooner than the turn before.

        A draft without any time is refused.
        """
        arrivals: dict[int, float] = {}
        for draft in drafts:
            if draft.before is not None and id(draft.before) not in arrivals:
                draft.before = None
            times = [] if draft.time is None else [draft.time]
            if draft.before is not None:
                times.append(arrivals[id(draft.before)] + (draft.delay or 0.0))
            if times:
                arrivals[id(draft)] = max(times)
                continue
            error = BadFieldError(self._layout.time or "", "missing value", "a time is needed")
            self._refusals.refuse(draft.place, error)
        return arrivals

    def _require(self, drafts: Sequence[Draft]) -> None:
        if not drafts:
            dropped = self._refusals.dropped
            lost = ", ".join(f"{count} x {reason}" for reason, count in dropped.items())
            raise TraceError(
                f"trace has no usable request: {lost or 'it is empty'}", where=self._name
            )


def _is_failure(known: TraceFormat, row: Row, layout: Layout) -> bool:
    """Whether a row is a request that the service did not answer, by its format's own account."""
    return known.empty_is_failure and str(row.get(layout.output or "")) in ("0", "0.0")


def _requests(
    drafts: Sequence[Draft], arrivals: Mapping[int, float], tree: TextTree
) -> tuple[Request, ...]:
    """Requests in order of arrival; equal times keep the order of the file."""
    ordered = sorted(drafts, key=lambda draft: arrivals[id(draft)])
    start_s = arrivals[id(ordered[0])]
    index = {id(draft): number for number, draft in enumerate(ordered)}
    for draft in ordered:
        tree.count(draft.text)
    return tuple(
        Request(
            arrival_s=arrivals[id(draft)] - start_s,
            prompt_tokens=draft.prompt,
            output_tokens=draft.output,
            cached_prefix_tokens=draft.cached,
            prefix=tree.shared(draft.text),
            after=None if draft.before is None else index[id(draft.before)],
            wait_s=draft.delay or 0.0 if draft.before is not None else 0.0,
        )
        for draft in ordered
    )
