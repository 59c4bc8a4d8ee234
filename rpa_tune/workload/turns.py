"""Turns of one conversation: which row comes before which, and what of it a later prompt repeats.

A file may say so by the id of a parent, by the id of a conversation with a number or a time, or by
standing in one row (`messages.py`). However it says so, a turn is sent when the one before was
answered, and begins with the same tokens.

What a prompt column counts differs: in most traces the whole conversation before it (`full`), in
others only what the turn adds (`new`). The lengths themselves tell, if all turns agree.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rpa_tune.errors import TraceError
from rpa_tune.workload.draft import Draft, Layout, Refusals, too_long
from rpa_tune.workload.text_tree import ROOT, TextTree

TURNS = ("full", "new", "apart")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """How turns were linked.

    Attributes:
      kind: `full`, `new` or `apart`; None when no row follows another.
      num_conversations: Conversations of two turns or more.
      num_cut: Turns whose prompt is shorter than the one before: what is left of it is not known,
        and nothing is shared.
    """

    kind: str | None
    num_conversations: int = 0
    num_cut: int = 0


def link_turns(drafts: Sequence[Draft], layout: Layout, told: str | None) -> int:
    """Sets `before` of every row that follows another, by ids.

    Args:
      drafts: Rows in the file's order, times in seconds.
      layout: Their columns.
      told: What a person said of turns, or None.

    Returns:
      Rows whose parent is not in the file.

    Raises:
      TraceError: An id stands for two rows, or rows follow each other in a circle.
    """
    if told == "apart":
        return 0
    if layout.parent and layout.own_id:
        return _link_by_parent(drafts, layout)
    if layout.session:
        _link_by_session(drafts)
    return 0


def _link_by_parent(drafts: Sequence[Draft], layout: Layout) -> int:
    by_id: dict[str, Draft] = {}
    parents = {draft.parent_id for draft in drafts} - {None}
    for draft in drafts:
        if draft.own_id is None:
            continue
        if draft.own_id in parents and draft.own_id in by_id:
            raise TraceError(
                f"{draft.own_id!r} is named as a parent, and two rows have it "
                f"(the other: {by_id[draft.own_id].place})",
                where=f"{draft.place}, column {layout.own_id!r}",
                hint="give each row an id of its own, or read rows apart with {}",
                settings=("requests: {turns: apart}",),
            )
        by_id[draft.own_id] = draft
    num_orphans = 0
    for draft in drafts:
        if draft.parent_id is not None:
            draft.before = by_id.get(draft.parent_id)
            num_orphans += draft.before is None
    _refuse_circles(drafts, layout.parent or "")
    return num_orphans


def _refuse_circles(drafts: Sequence[Draft], column: str) -> None:
    """Refuses rows that follow each other in a circle.

    Raises:
      TraceError: There are some.
    """
    done: set[int] = set()
    for draft in drafts:
        seen: set[int] = set()
        at: Draft | None = draft
        while at is not None and id(at) not in done:
            if id(at) in seen:
                raise TraceError(
                    f"rows follow each other in a circle through {at.own_id!r}",
                    where=f"{at.place}, column {column!r}",
                    hint="fix the parents, or read rows apart with {}",
                    settings=("requests: {turns: apart}",),
                )
            seen.add(id(at))
            at = at.before
        done |= seen


def _link_by_session(drafts: Sequence[Draft]) -> None:
    """Each row follows the one before in its conversation: by turn, time, or place in the file."""
    sessions: defaultdict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        if draft.session is not None:
            sessions[draft.session].append(draft)
    for rows in sessions.values():
        if all(row.turn is not None for row in rows):
            rows.sort(key=lambda row: row.turn or 0.0)
        elif all(row.time is not None for row in rows):
            rows.sort(key=lambda row: row.time or 0.0)
        for before, row in itertools.pairwise(rows):
            row.before = before


def settle_texts(
    drafts: Sequence[Draft],
    tree: TextTree,
    told: str | None,
    max_model_len: int,
    refusals: Refusals,
) -> tuple[list[Draft], Turns]:
    """Gives every row the text it shares, and turns the history that the file leaves out.

    Args:
      drafts: Rows with `before`; hashes are in `text` already.
      tree: The texts of the file.
      told: What a person said of turns, or None.
      max_model_len: Prompts must be shorter.
      refusals: What to do with prompts that their history makes too long.

    Returns:
      (Rows that are left, each after the one before it; how turns were linked.)

    Raises:
      TraceError: What prompts count is not known, or a row is bad.
    """
    _skip_missing(drafts)
    pairs = [(d.before, d) for d in drafts if d.before is not None]
    kind = _kind_of(pairs, told)
    num_cut, kept = 0, []
    lost: set[int] = set()
    for draft in _parents_first(drafts):
        before = draft.before
        if before is not None and id(before) in lost and kind == "new":
            lost.add(id(draft))
            refusals.dropped["turn after one that was left out"] += 1
            continue
        if before is not None and id(before) in lost:
            before = draft.before = None
        if draft.text or draft.hashes is not None:  # the file says itself what is shared
            kept.append(draft)
            continue
        if before is not None and kind == "new":
            draft.prompt += before.prompt + before.output
        elif before is not None and draft.prompt < before.prompt:
            num_cut += 1
        if draft.prompt >= max_model_len:
            lost.add(id(draft))
            refusals.refuse(draft.place, too_long("turn", draft.prompt, max_model_len))
            continue
        _add_turn(draft, tree, len(kept))
        kept.append(draft)
    known = {id(draft.before) for draft in kept} - {id(None)}
    turns = Turns(
        kind=kind,
        num_conversations=sum(d.before is None and id(d) in known for d in kept),
        num_cut=num_cut,
    )
    return kept, turns


def _skip_missing(drafts: Sequence[Draft]) -> None:
    """Lets turns follow the nearest one that was not left out."""
    present = {id(draft) for draft in drafts}
    for draft in drafts:
        while draft.before is not None and id(draft.before) not in present:
            draft.before = draft.before.before


def _kind_of(pairs: Sequence[tuple[Draft, Draft]], told: str | None) -> str | None:
    """Whether prompts hold the turns before them.

    Raises:
      TraceError: Some do and some cannot.
    """
    if not pairs:
        return None
    written = [pair for pair in pairs if pair[1].text or pair[1].hashes is not None]
    if written and told == "new":
        raise TraceError(
            "turns: new contradicts rows that say what their whole prompts begin with",
            where=written[0][1].place,
        )
    if written:
        return "full"
    if told:
        return told
    holds = [row.prompt >= before.prompt + before.output for before, row in pairs]
    if all(holds):
        return "full"
    if not any(holds):
        return "new"
    row = pairs[holds.index(False)][1]
    raise TraceError(
        f"{holds.count(True):,} turns of {len(holds):,} have a prompt as long as the conversation "
        f"before them, {holds.count(False):,} have not: whether prompts hold it is not known",
        where=row.place,
        hint="say so with {} (they do, and some were cut), {} (they count what a turn adds) or {}",
        settings=("requests: {turns: full}", "requests: {turns: new}", "requests: {turns: apart}"),
    )


def _add_turn(draft: Draft, tree: TextTree, number: int) -> None:
    """Names the text of a turn: what it repeats of the one before, its prompt, its answer."""
    node, path = ROOT, []
    before = draft.before
    if before is not None and draft.prompt >= before.prompt:
        path = [pair for pair in before.text if pair[1] <= draft.prompt]
        node = path[-1][0] if path else ROOT
    for label, end in (("prompt", draft.prompt), ("answer", draft.prompt + draft.output)):
        if not path or end > path[-1][1]:
            node = tree.step(node, (number, label))
            path.append((node, end))
    draft.text = tuple(path)


def _parents_first(drafts: Sequence[Draft]) -> list[Draft]:
    """Rows in their order, but none before the one it follows."""
    done: set[int] = set()
    ordered: list[Draft] = []
    for draft in drafts:
        chain: list[Draft] = []
        at: Draft | None = draft
        while at is not None and id(at) not in done:
            chain.append(at)
            done.add(id(at))
            at = at.before
        ordered += reversed(chain)
    return ordered
