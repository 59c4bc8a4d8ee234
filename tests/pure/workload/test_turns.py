"""Turns of one conversation: linked whichever way a file says so, and served in order."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.arrivals import Arrivals, Process
from rpa_tune.workload.draft import Draft, Layout, Refusals
from rpa_tune.workload.engine import SimulatedEngine
from rpa_tune.workload.knobs import EngineKnobs
from rpa_tune.workload.request import Request
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.text_tree import TextTree
from rpa_tune.workload.trace import Trace, TraceRules, load_trace
from rpa_tune.workload.turns import Turns, link_turns, settle_texts

KNOBS = EngineKnobs(block_size=16, max_num_seqs=8, max_model_len=4096)


def read(tmp_path: Path, rows: list[Any], **rules: Any) -> Trace:
    path = tmp_path / "t"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_trace(path, TraceRules(**{"max_model_len": 4096, **rules}))


def turn(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "output_tokens": output, **more}


def links(trace: Trace) -> list[int | None]:
    return [request.after for request in trace.requests]


def test_sessions_go_by_turn_whatever_the_rows_order(tmp_path: Path) -> None:
    rows = [
        turn(300, 10, session_id="a", turn=2),
        turn(100, 10, session_id="a", turn=1),
        turn(50, 10, session_id="b", turn=1),
    ]
    trace = read(tmp_path, rows)
    assert [request.prompt_tokens for request in trace.requests] == [100, 300, 50]
    assert links(trace) == [None, 0, None]


def test_sessions_without_turns_go_by_time(tmp_path: Path) -> None:
    rows = [turn(p, 10, session_id="a", time=t) for p, t in ((300, 9), (100, 1), (200, 5))]
    trace = read(tmp_path, rows)
    assert [request.prompt_tokens for request in trace.requests] == [100, 200, 300]
    assert links(trace) == [None, 0, 1]


def test_a_turn_never_arrives_before_its_parent(tmp_path: Path) -> None:
    """Clocks of two hosts: the child has the earlier time."""
    rows = [turn(300, 10, id=2, parent_id=1, time=4), turn(100, 10, id=1, parent_id="", time=5)]
    trace = read(tmp_path, rows)
    assert [(r.prompt_tokens, r.arrival_s) for r in trace.requests] == [(100, 0.0), (300, 0.0)]
    assert links(trace) == [None, 0]


def test_two_turns_may_follow_one(tmp_path: Path) -> None:
    rows = [turn(100, 10, id=1, parent_id=-1)] + [turn(200, 10, id=i, parent_id=1) for i in (2, 3)]
    trace = read(tmp_path, rows)
    assert links(trace) == [None, 0, 0]
    assert [[end for _, end in r.prefix] for r in trace.requests] == [[100, 110]] * 3


def test_prompts_that_count_the_new_part_get_their_history(tmp_path: Path) -> None:
    """Sessions of AIPerf: no times, a delay in milliseconds, the history left out."""
    rows = [
        {"session_id": "a", "input_length": 300, "output_length": 40},
        {"session_id": "a", "delay": 2000, "input_length": 150, "output_length": 20},
        {"session_id": "a", "delay": 500, "input_length": 60, "output_length": 20},
    ]
    trace = read(tmp_path, rows)
    assert [request.prompt_tokens for request in trace.requests] == [300, 490, 570]
    assert [request.wait_s for request in trace.requests] == [0.0, 2.0, 0.5]
    assert [end for _, end in trace.requests[2].prefix] == [300, 340, 490, 510]
    assert trace.facts.turns == "new"
    assert not trace.facts.has_times
    with pytest.raises(TraceError, match="prompt over max_model_len: 570 tokens"):
        read(tmp_path, rows, max_model_len=500)
    trace = read(tmp_path, rows, max_model_len=400, drop_bad=True)
    assert trace.dropped == {
        "prompt over max_model_len": 1,
        "turn after one that was left out": 1,
    }


def test_prompts_that_may_be_either_are_refused(tmp_path: Path) -> None:
    rows = [turn(p, 10, session_id="a") for p in (100, 150, 40)]
    with pytest.raises(TraceError, match="1 turns of 2 have a prompt as long") as caught:
        read(tmp_path, rows)
    assert "`requests: {turns: new}`" in caught.value.hint
    lengths = {
        kind: [request.prompt_tokens for request in read(tmp_path, rows, turns=kind).requests]
        for kind in ("full", "new", "apart")
    }
    assert lengths == {"full": [100, 150, 40], "new": [100, 260, 310], "apart": [100, 150, 40]}
    assert links(read(tmp_path, rows, turns="apart")) == [None, None, None]


def test_unknown_unit_of_a_delay_is_refused(tmp_path: Path) -> None:
    rows = [turn(100, 10, session_id="a"), turn(300, 10, session_id="a", delay=7)]
    with pytest.raises(TraceError, match=r"unit of 'delay' is not known: .* 7 s or 7 ms"):
        read(tmp_path, rows)
    assert read(tmp_path, rows, time_unit="s").requests[1].wait_s == 7.0
    rows[1] = turn(300, 10, session_id="a", delay_s=7)
    assert read(tmp_path, rows).requests[1].wait_s == 7.0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([(1, 2), (2, 1)], "rows follow each other in a circle"),
        ([(1, 1)], "rows follow each other in a circle"),
        ([(1, -1), (1, -1), (2, 1)], "'1' is named as a parent, and two rows have it"),
    ],
)
def test_parents_that_cannot_be(tmp_path: Path, ids: list[tuple[int, int]], message: str) -> None:
    rows = [turn(100, 10, id=own, parent_id=parent) for own, parent in ids]
    with pytest.raises(TraceError, match=message):
        read(tmp_path, rows)
    assert set(links(read(tmp_path, rows, turns="apart"))) == {None}


def test_turns_follow_the_nearest_that_was_not_left_out(tmp_path: Path) -> None:
    talk = [("user", "q" * 40), ("assistant", "a" * 20)] * 3
    row = {"messages": [{"role": role, "content": text} for role, text in talk]}
    row["messages"][3]["timestamp"] = 9.9e17  # the second answer came in no year of ours
    for i in (1, 5):
        row["messages"][i]["timestamp"] = 1.7e9 + i
    trace = read(tmp_path, [row], drop_bad=True)
    assert trace.dropped == {"far-off time": 1}
    assert links(trace) == [None, 0]
    assert [request.prompt_tokens for request in trace.requests] == [10, 40]


def served(requests: list[Request], **options: Any) -> tuple[list[EngineStep], SimulatedEngine]:
    engine = SimulatedEngine(requests, KNOBS, **options)
    return list(engine.run()), engine


def request(prompt: int, time: float = 0.0, **more: Any) -> Request:
    return Request(arrival_s=time, prompt_tokens=prompt, output_tokens=4, **more)


def test_a_turn_waits_for_the_answer_before_it() -> None:
    text = (("t", 36),)
    steps, engine = served([request(32, prefix=text), request(40, after=0, prefix=text)])
    assert max(step.num_seqs for step in steps) == 1
    first = next(i for i, step in enumerate(steps) if i and step.q_lens[0] > 1)
    assert steps[first - 1].kv_lens[0] == 35  # all but the last token of the first turn
    assert engine.stats.num_cached_tokens == 32
    assert engine.stats.num_finished == 2


def test_a_turn_waits_for_the_time_after_the_answer() -> None:
    steps, _ = served([request(32), request(32, after=0, wait_s=7.0)])
    gaps = [b.start_us - a.start_us for a, b in itertools.pairwise(steps)]
    assert 7.0e6 < max(gaps) < 7.1e6
    steps, _ = served([request(32), request(32, 9.0, after=0)])  # a later time of its own
    assert steps[-4].start_us == 9.0e6


def test_users_of_a_closed_loop_go_on_with_their_turns() -> None:
    """One user: the next conversation starts when the first has ended."""
    requests = [request(32), request(48, after=0), request(64)]
    steps, _ = served(requests, max_concurrency=1)
    assert [int(step.kv_lens[0]) for step in steps if step.q_lens[0] > 1] == [32, 48, 64]


def test_a_turn_before_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="request 0 follows request 1"):
        SimulatedEngine([request(32, after=1), request(32)], KNOBS)


def test_waits_shrink_with_the_times_of_a_trace() -> None:
    requests = [request(32), request(32, 10.0, after=0, wait_s=4.0)]
    fast = Arrivals(process=Process.TRACE, request_rate=0.2).apply(requests, seed=0)
    assert [(r.arrival_s, r.wait_s) for r in fast] == [(0.0, 0.0), (5.0, 2.0)]
    drawn = Arrivals(process=Process.POISSON, request_rate=0.2).apply(requests, seed=0)
    assert drawn[1].wait_s == 4.0


def settle(
    drafts: list[Draft], told: str | None = None, *, drop: bool = True
) -> tuple[list[Draft], Turns, Refusals]:
    refusals = Refusals(drop_bad=drop)
    return *settle_texts(drafts, TextTree(), told, 1000, refusals), refusals


def chain(*lengths: tuple[int, int]) -> list[Draft]:
    """Turns of one conversation, each after the one before."""
    drafts: list[Draft] = []
    for i, (prompt, output) in enumerate(lengths):
        before = drafts[-1] if drafts else None
        drafts.append(Draft(place=f"t:{i}", prompt=prompt, output=output, before=before))
    return drafts


def test_rows_that_are_told_to_be_apart_are_not_linked() -> None:
    rows = [turn(9, 1, id=1, parent_id=""), turn(9, 1, id=2, parent_id=1), turn(9, 1, id=3)]
    layout = Layout.of(rows[0])

    def drafts() -> list[Draft]:
        return [layout.draft(f"t:{i}", row) for i, row in enumerate(rows)]

    linked, apart = drafts(), drafts()
    assert (link_turns(linked, layout, None), link_turns(apart, layout, "apart")) == (0, 0)
    assert [draft.before for draft in linked] == [None, linked[0], None]
    assert [draft.before for draft in apart] == [None, None, None]


def test_a_thousand_turns_link_without_recursion() -> None:
    rows = [turn(9, 1, id=i, parent_id=i + 1) for i in range(3000)]  # the first is the last turn
    layout = Layout.of(rows[0])
    drafts = [layout.draft(f"t:{i}", row) for i, row in enumerate(rows)]
    assert link_turns(drafts, layout, None) == 1  # the first turn's parent is not there
    kept, turns, _ = settle(drafts, "full")
    assert kept == drafts[::-1]
    assert turns == Turns(kind="full", num_conversations=1, num_cut=0)


def test_history_is_added_to_new_parts_and_to_nothing_else() -> None:
    for told, prompts in (
        (None, [100, 160, 250]),
        ("full", [100, 50, 60]),
        ("apart", [100, 50, 60]),
    ):
        kept, turns, _ = settle(chain((100, 10), (50, 30), (60, 5)), told)
        assert [draft.prompt for draft in kept] == prompts
        assert turns.kind == (told or "new")


def test_a_turn_shares_the_answer_only_if_its_prompt_can_hold_it() -> None:
    first, second, third = settle(chain((100, 10), (105, 30), (200, 5)), "full")[0]
    assert [end for _, end in first.text] == [100, 110]
    assert [end for _, end in second.text] == [100, 105, 135]
    assert second.text[0] == first.text[0]
    assert third.text[:3] == second.text


def test_turns_after_one_that_is_too_long_go_with_it_if_they_need_its_text() -> None:
    lengths = (600, 100), (500, 10), (1, 1)
    kept, _, refusals = settle(chain(*lengths), "new")
    assert [draft.place for draft in kept] == ["t:0"]
    assert refusals.dropped == {
        "prompt over max_model_len": 1, "turn after one that was left out": 1
    }  # fmt: skip
    with pytest.raises(TraceError, match="prompt over max_model_len: 1200 tokens"):
        settle(chain(*lengths), "new", drop=False)
    # Prompts that hold all of the conversation are whole without it.
    kept, turns, refusals = settle(chain((600, 100), (1001, 10), (800, 1)), "full")
    assert [(draft.place, draft.before) for draft in kept] == [("t:0", None), ("t:2", None)]
    assert refusals.dropped == {"prompt over max_model_len": 1}
    assert turns.num_conversations == 0
