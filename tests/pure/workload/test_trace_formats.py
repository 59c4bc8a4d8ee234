"""Formats of published traces: whose, which unit, how long a block; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.trace import Trace, TraceRules, load_trace


def read(tmp_path: Path, rows: Any, **rules: Any) -> Trace:
    """Reads CSV text, or rows as JSON Lines."""
    path = tmp_path / "t"
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    return load_trace(path, TraceRules(**{"max_model_len": 100_000, **rules}))


def triples(trace: Trace) -> list[tuple[float, int, int]]:
    return [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]


def ends(trace: Trace) -> list[list[int]]:
    return [[end for _, end in request.prefix] for request in trace.requests]


def bailian(chat: int, parent: int, time: float, prompt: int, turn: int, **more: Any) -> Any:
    return {
        "chat_id": chat, "parent_chat_id": parent, "timestamp": time, "input_length": prompt,
        "output_length": 132, "type": "text", "turn": turn, **more,
    }  # fmt: skip


def test_bailian_is_in_seconds_and_blocks_of_16(tmp_path: Path) -> None:
    rows = [
        bailian(159, -1, 0.0, 521, 1, hash_ids=list(range(33))),
        bailian(160, 159, 61.5, 700, 2, hash_ids=[*range(32), *range(100, 112)]),
        bailian(7, 3, 62.0, 40, 2, hash_ids=[0, 1, 2]),
    ]
    trace = read(tmp_path, rows)
    assert triples(trace) == [(0.0, 521, 132), (61.5, 700, 132), (62.0, 40, 132)]
    assert ends(trace) == [[*range(16, 513, 16)], [*range(16, 513, 16)], [16, 32]]
    assert trace.requests[0].prefix == trace.requests[1].prefix
    assert [request.after for request in trace.requests] == [None, 0, None]
    facts = trace.facts
    assert (facts.format, facts.time_unit, facts.block_tokens) == ("Qwen-Bailian", "s", 16)
    assert (facts.span_s, facts.rate_per_s) == (62.0, 2 / 62.0)
    assert (facts.turns, facts.num_conversations, facts.num_orphans) == ("full", 1, 1)
    assert str(facts) == (
        "Qwen-Bailian; times in s (as Qwen-Bailian has it); 3 requests in 62.00 s, 0.03226 a "
        "second; hashes of blocks of 16 tokens; 1 conversation of several turns, prompts hold the "
        "turns before them; 1 row whose parent is not in the file"
    )


def test_bailian_hashes_are_of_blocks_and_not_of_beginnings(tmp_path: Path) -> None:
    """One block's hash after another beginning is another text."""
    rows = [
        bailian(1, -1, 0.0, 48, 1, hash_ids=[5, 6, 7]),
        bailian(2, -1, 1.0, 48, 1, hash_ids=[9, 6, 7]),
        bailian(3, -1, 2.0, 48, 1, hash_ids=[5, 6, 8]),
    ]
    assert ends(read(tmp_path, rows)) == [[16, 32], [], [16, 32]]


def test_bailian_without_hashes_shares_the_turns_before(tmp_path: Path) -> None:
    """The third turn lacks the second's answer, and the fourth is cut."""
    rows = [
        bailian(1, -1, 0.0, 500, 1),
        bailian(2, 1, 10.0, 700, 2),
        bailian(3, 2, 20.0, 800, 3),
        bailian(4, 3, 30.0, 600, 4),
    ]
    trace = read(tmp_path, rows)
    assert ends(trace) == [[500, 632], [500, 632, 700], [500, 632, 700], []]
    assert [request.after for request in trace.requests] == [None, 0, 1, 2]
    assert trace.facts.num_cut_turns == 1


def mooncake(time: float, prompt: int, hashes: list[int] | None = None) -> Any:
    row = {"timestamp": time, "input_length": prompt, "output_length": 5}
    return row if hashes is None else {**row, "hash_ids": hashes}


@pytest.mark.parametrize("with_hashes", [True, False])
def test_mooncake_is_in_milliseconds_and_blocks_of_512(tmp_path: Path, with_hashes: bool) -> None:
    """The rows are those of its README, but for the times."""
    shared = [*range(46, 58)]
    hashes = [[*shared, 2353, 2354], [*shared, 2366]] if with_hashes else [None, None]
    rows = [mooncake(27482, 6955, hashes[0]), mooncake(28482, 6472, hashes[1])]
    trace = read(tmp_path, rows)
    assert triples(trace) == [(0.0, 6955, 5), (1.0, 6472, 5)]
    assert ends(trace) == ([[512 * i for i in range(1, 13)]] * 2 if with_hashes else [[], []])
    assert (trace.facts.format, trace.facts.time_unit) == ("Mooncake", "ms")
    assert trace.facts.block_tokens == (512 if with_hashes else None)


def test_fractions_are_no_times_of_mooncake(tmp_path: Path) -> None:
    rows = [mooncake(0.5, 9), mooncake(61.114, 9)]
    with pytest.raises(
        TraceError, match=r"unit of 'timestamp' is not known: .* whole milliseconds"
    ):
        read(tmp_path, rows)
    assert triples(read(tmp_path, rows, time_unit="s"))[1][0] == pytest.approx(60.614)
    unix = [mooncake(1.7e9, 9), mooncake(1.7e9 + 60, 9)]
    with pytest.raises(TraceError, match="unit of 'timestamp' is not known"):
        read(tmp_path, unix)


def test_hashes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rows = [mooncake(1000 * i, 900 + i, [*range(57)]) for i in range(3)]
    with pytest.raises(
        TraceError, match="do not fit blocks of 512 tokens in 3 rows of 3"
    ) as caught:
        read(tmp_path, rows, drop_bad=True)
    assert "57 hashes for 900 prompt tokens, need 2 of 512 tokens" in str(caught.value)
    assert "`requests: {block_tokens: 16}`" in caught.value.hint
    assert read(tmp_path, rows, block_tokens=16).facts.block_tokens == 16
    rows = [mooncake(1000 * i, 900, [0, 1]) for i in range(3)] + [mooncake(3000, 900, [0, 1, 2])]
    with pytest.raises(TraceError, match="misfit hashes: 3 hashes for 900 prompt tokens, need 2"):
        read(tmp_path, rows)
    assert read(tmp_path, rows, drop_bad=True).dropped == {"misfit hashes": 1}


def test_blocks_of_an_unknown_format_have_to_be_told(tmp_path: Path) -> None:
    rows = [
        {"time": i, "prompt_tokens": 200, "output_tokens": 2, "hash_ids": [*range(4)]}
        for i in range(3)
    ]
    with pytest.raises(TraceError, match="tokens per hash_ids block is unknown") as caught:
        read(tmp_path, rows)
    assert "the numbers fit blocks of 64 tokens" in caught.value.hint
    assert ends(read(tmp_path, rows, block_tokens=64)) == [[64, 128, 192]] * 3
    with pytest.raises(TraceError, match="no row has hash_ids"):
        read(tmp_path, [mooncake(0, 9)], block_tokens=64)


def test_burstgpt_failures_are_left_out(tmp_path: Path) -> None:
    """Rows as in its release 1.1 and 1.2; no response, or neither, is a request that failed."""
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n1106,ChatGPT,0,0,0,Conversation log\n"
        "45,GPT-4,417,27.0,444,API log\n50,GPT-4,1000,0,1000,API log\n"
    )
    trace = read(tmp_path, text)
    assert triples(trace) == [(0.0, 472, 18), (40.0, 417, 27)]
    assert trace.dropped == {"failed request": 2}
    assert (trace.facts.format, trace.facts.time_unit) == ("BurstGPT", "s")
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n"
        "5,s1,1.2,ChatGPT,400,20,420,Conversation log\n9,,1.2,GPT-4,30,20,50,API log\n"
        "100,s1,1.2,ChatGPT,450,20,470,Conversation log\n"
    )
    trace = read(tmp_path, text)
    assert [request.after for request in trace.requests] == [None, None, 0]
    assert ends(trace) == [[400, 420], [], [400, 420]]
    with pytest.raises(TraceError, match="length too small: got 0"):
        read(tmp_path, text + "101,,1.2,ChatGPT,0,20,20,API log\n")


def test_azure_2024_has_time_zones(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.017335+00:00,2399,6\n"
        "2024-05-12 00:00:00+00:00,76,15\n"
    )
    trace = read(tmp_path, text)
    assert triples(trace) == [
        (0.0, 2162, 5),
        (pytest.approx(1.007405, abs=1e-5), 2399, 6),
        (pytest.approx(172799.990070, abs=1e-5), 76, 15),
    ]
    assert (trace.facts.format, trace.facts.time_unit) == ("Azure LLM inference", "date")


def said(role: str, text: Any, **more: Any) -> Any:
    return {"role": role, "content": text, **more}


TALK = [said("user", "q" * 40), said("assistant", "a" * 20), said("user", "r" * 8)]


def test_lmsys_conversations(tmp_path: Path) -> None:
    row = {"conversation_id": "x", "model": "m", "conversation": TALK[:2], "turn": 1}
    longer = {**row, "conversation": [*TALK, said("assistant", "b" * 16)], "turn": 2}
    trace = read(tmp_path, [row, longer])
    assert triples(trace) == [(0.0, 10, 5), (0.0, 10, 5), (0.0, 17, 4)]
    assert [request.after for request in trace.requests] == [None, None, 1]
    assert trace.requests[0].prefix == trace.requests[1].prefix  # the same words
    assert (trace.facts.format, trace.facts.time_unit) == ("LMSYS/WildChat conversations", None)
    assert "no times" in str(trace.facts)


def test_wildchat_times_are_those_of_the_answers(tmp_path: Path) -> None:
    talk = [
        said("user", "q" * 40, timestamp=None),
        said("assistant", "a" * 20, timestamp="2023-04-09T00:01:00Z"),
        said("user", "r" * 8, timestamp=None),
        said("assistant", "b" * 16, timestamp="2023-04-09T00:02:53Z"),
    ]
    rows = [
        {"conversation_hash": "h", "timestamp": "2023-04-09T00:02:53Z", "conversation": talk},
        {"conversation_hash": "g", "timestamp": "2023-04-09T00:02:00Z", "conversation": TALK[:2]},
    ]
    trace = read(tmp_path, rows)
    assert triples(trace) == [(0.0, 10, 5), (60.0, 10, 5), (113.0, 17, 4)]
    assert [request.after for request in trace.requests] == [None, None, 0]
    assert trace.facts.num_conversations == 1


def test_only_text_of_messages_counts(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 4000, "format": "wav"}}
    text = {"type": "text", "text": "x" * 128}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}" * 500}}
    messages = [
        said("user", [text, image, audio]),
        said("assistant", None, tool_calls=[call]),
        said("tool", [{"type": "text", "text": "t" * 12}]),
        said("assistant", "a" * 20),
        said("user", [image]),
        said("assistant", [{"type": "output_text", "text": "b" * 8}, "c" * 4]),
    ]
    trace = read(tmp_path, [{"messages": messages}, {"messages": [said("user", [image])] * 2}])
    assert triples(trace) == [(0.0, 35, 5), (0.0, 40, 3)]
    assert trace.dropped == {"answer without text": 1}
    assert trace.facts.num_other_parts == 2 + 1 + 1 + 2
    with pytest.raises(TraceError, match="bad message: an object is needed, got str"):
        read(tmp_path, [{"messages": ["hello"]}])


def test_messages_with_a_length_are_one_request(tmp_path: Path) -> None:
    """The prompts hold the turns before in words; ids say which waits for which."""
    rows = [
        {"session_id": "s", "messages": TALK[:1], "output_length": 50, "timestamp_ms": 0},
        {"session_id": "s", "messages": TALK, "output_length": 30, "timestamp_ms": 2000},
        {"session_id": "t", "messages": TALK, "prompt_tokens": 77, "output_length": 3,
         "timestamp_ms": 3000},
    ]  # fmt: skip
    trace = read(tmp_path, rows)
    assert triples(trace) == [(0.0, 10, 50), (2.0, 17, 30), (3.0, 77, 3)]
    assert [request.after for request in trace.requests] == [None, 0, None]
    assert ends(trace)[:2] == [[10], [10]]


@pytest.mark.parametrize(
    ("column", "values", "seconds"),
    [
        ("created_time", [1_700_000_000, 1_700_000_060], 60.0),
        ("created_time", [0, 1.5], 1.5),
        ("created", [1_700_000_000_000, 1_700_000_060_000], 60.0),
        ("timestamp", [1_700_000_000_000_000, 1_700_000_060_000_000], 60.0),
        ("timestamp", [1_700_000_000 * 10**9, 1_700_000_060 * 10**9], 60.0),
        ("timestamp_us", [0, 1500], 0.0015),
        ("Start Time-ms", [0, 1500], 1.5),
        ("arrivals_sec", [1, 3], 2.0),
        ("created_at", ["2024-01-01T00:00:00Z", "2024-01-01T00:01:00Z"], 60.0),
    ],
)
def test_units_that_a_column_tells(
    tmp_path: Path, column: str, values: list[Any], seconds: float
) -> None:
    rows = [{column: value, "prompt_tokens": 9, "output_tokens": 2} for value in values]
    assert read(tmp_path, rows).requests[1].arrival_s == pytest.approx(seconds)


@pytest.mark.parametrize("column", ["timestamp", "ts", "start_time", "timestamps"])
def test_a_unit_that_nothing_tells_is_refused(tmp_path: Path, column: str) -> None:
    rows = [{column: 50 * i, "prompt_tokens": 9, "output_tokens": 2} for i in range(5)]
    with pytest.raises(TraceError, match="the numbers span 200 s or 200 ms") as caught:
        read(tmp_path, rows)
    assert "`requests: {time_unit: s}` or `requests: {time_unit: ms}`" in caught.value.hint
    for unit, span in (("s", 200.0), ("ms", 0.2), ("us", 2e-4), ("ns", 2e-7)):
        assert read(tmp_path, rows, time_unit=unit).facts.span_s == pytest.approx(span)
    alike = [{**row, column: 7} for row in rows]
    assert read(tmp_path, alike).facts.span_s == 0.0


def test_a_unit_for_dates_is_refused(tmp_path: Path) -> None:
    rows = [{"time": "2024-01-01", "prompt_tokens": 9, "output_tokens": 2}]
    with pytest.raises(TraceError, match="times are dates"):
        read(tmp_path, rows, time_unit="ms")


def times_csv(*times: float) -> str:
    return "time,prompt_tokens,output_tokens\n" + "".join(f"{t},9,2\n" for t in times)


@pytest.mark.parametrize("drop_bad", [True, False])
def test_rows_are_sorted(tmp_path: Path, drop_bad: bool) -> None:
    trace = read(tmp_path, times_csv(3, 1, 2, 0), drop_bad=drop_bad)
    assert [request.arrival_s for request in trace.requests] == [0.0, 1.0, 2.0, 3.0]
    assert trace.dropped == {}
    assert "sorted, 2 rows had a time before the row above" in str(trace.facts)


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("wrong", [1e9, -1e9])
def test_one_time_far_off_costs_one_row(tmp_path: Path, place: int, wrong: float) -> None:
    times = [0.0, 1.0, 2.0, 3.0, 4.0]
    times.insert(place, wrong)
    text = times_csv(*times)
    with pytest.raises(TraceError, match=r"far-off time: .* s away from nearly all") as caught:
        read(tmp_path, text)
    assert f"t:{place + 2}, column 'time'" in caught.value.where
    trace = read(tmp_path, text, drop_bad=True)
    assert [request.arrival_s for request in trace.requests] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert trace.dropped == {"far-off time": 1}


def test_a_quiet_week_is_no_mistake(tmp_path: Path) -> None:
    assert read(tmp_path, times_csv(0, 1, 2, 600_000)).facts.span_s == 600_000.0


def test_a_row_without_a_time_is_bad(tmp_path: Path) -> None:
    text = times_csv(0, 1) + ",9,2\n"
    with pytest.raises(TraceError, match="missing value: a time is needed"):
        read(tmp_path, text)
    assert read(tmp_path, text, drop_bad=True).dropped == {"missing value": 1}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_no_reader_takes(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="not JSON"):
        read(tmp_path, text)
