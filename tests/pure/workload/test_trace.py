"""Traces people have, and what is said of bad ones."""

import gzip
import json
from pathlib import Path

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.trace import TRACES, Trace, TraceRules, load_trace

RULES = TraceRules(max_model_len=1000)
DROP = TraceRules(max_model_len=1000, drop_bad=True)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def read(tmp_path: Path, text: str, rules: TraceRules = RULES, name: str = "t.csv") -> Trace:
    path = tmp_path / name
    path.write_text(text)
    return load_trace(path, rules)


def triples(trace: Trace) -> list[tuple[float, int, int]]:
    return [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]


@pytest.mark.parametrize(
    ("name", "count", "prompt_mean", "output_mean"),
    [
        ("azure-conv", 19366, 1154.7, 211.1),
        ("azure-code", 8819, 2047.8, 27.9),
        ("mooncake", 12031, 12035.1, 342.6),
    ],
)
def test_shipped_traces_are_whole(
    name: str, count: int, prompt_mean: float, output_mean: float
) -> None:
    trace = load_trace(name, TraceRules(max_model_len=131072))
    assert len(trace.requests) == count
    assert trace.dropped == {}
    assert sum(r.prompt_tokens for r in trace.requests) / count == pytest.approx(prompt_mean, abs=1)
    assert sum(r.output_tokens for r in trace.requests) / count == pytest.approx(
        output_mean, abs=0.1
    )
    assert trace.requests[0].arrival_s == 0.0
    assert 3400 < trace.requests[-1].arrival_s < 3600


def test_every_shipped_trace_has_its_source_and_licence() -> None:
    folder = Path(__file__).parents[3] / "rpa_tune" / "workload" / "traces"
    sources = (folder / "SOURCES.md").read_text()
    for file in TRACES.values():
        assert f"`{file}`" in sources
    assert "CC BY 4.0" in (folder / "LICENSE-azure.txt").read_text()
    assert "Apache License" in (folder / "LICENSE-mooncake.txt").read_text()


def test_azure_dates_count_from_the_first(tmp_path: Path) -> None:
    text = HEADER + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    assert triples(read(tmp_path, text)) == [
        (0.0, 374, 44),
        (pytest.approx(4.314579, abs=1e-5), 396, 109),
    ]


def test_other_spellings(tmp_path: Path) -> None:
    lines = '{"arrival_time": 1.5, "prompt_len": 7, "output-len": 3}\n\n'
    assert triples(read(tmp_path, lines, name="t.jsonl")) == [(0.0, 7, 3)]


def test_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(("\ufeff" + HEADER + "2023-01-01,5,6\n").encode()))
    assert triples(load_trace(path, RULES)) == [(0.0, 5, 6)]


def test_mooncake_hashes_become_prefixes(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 900, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [0, 2]},
    ]
    trace = read(tmp_path, "\n".join(map(json.dumps, rows)), name="t.jsonl")
    assert trace.requests[1].arrival_s == 1.5  # milliseconds
    (first,) = trace.requests[0].prefix  # the second block is not whole
    assert first[1] == 512
    assert trace.requests[1].prefix == (first,)


def test_sharegpt_turns_grow_and_are_estimates(tmp_path: Path) -> None:
    talk = [("human", "x" * 40), ("gpt", "y" * 20), ("human", "z" * 10), ("gpt", "w" * 8)]
    entry = {"id": "a", "conversations": [{"from": who, "value": text} for who, text in talk]}
    trace = read(tmp_path, json.dumps([entry, {"id": "empty", "conversations": []}]))
    assert triples(trace) == [(0.0, 10, 5), (0.0, 18, 2)]
    assert trace.requests[0].prefix == trace.requests[1].prefix
    assert [end for _, end in trace.requests[1].prefix] == [10, 15]  # question, answer
    assert trace.requests[1].after == 0
    assert trace.facts.is_estimated


@pytest.mark.parametrize(
    ("row", "reason", "column"),
    [
        ("2023-01-01,-5,6", "length too small: got -5", "ContextTokens"),
        ("2023-01-01,5,0", "length too small: got 0", "GeneratedTokens"),
        ("2023-01-01,,6", "missing value", "ContextTokens"),
        ("2023-01-01,5", "missing value", "GeneratedTokens"),
        ("2023-01-01,many,6", "not a number: a token count is needed, got 'many'", "ContextTokens"),
        ("2023-01-01,5.5,6", "not a number: a whole number", "ContextTokens"),
        ("2023-01-01,nan,6", "not a number", "ContextTokens"),
        ("2023-01-01,inf,6", "not a number", "ContextTokens"),
        ("2023-01-01,1e12,6", "absurd length", "ContextTokens"),
        ("2023-01-01,1000,6", "prompt over max_model_len", "ContextTokens"),
        ("yesterday,5,6", "bad time: 'yesterday'", "TIMESTAMP"),
        ("5,5,6", "bad time: a number among dates", "TIMESTAMP"),
    ],
)
def test_bad_rows_say_where_and_can_be_dropped(
    tmp_path: Path, row: str, reason: str, column: str
) -> None:
    text = HEADER + "2023-01-01,7,8\n" + row + "\n2023-01-02,9,9\n"
    with pytest.raises(TraceError, match=reason) as caught:
        read(tmp_path, text)
    assert caught.value.where == f"{tmp_path / 't.csv'}:3, column {column!r}"
    assert "`requests: {drop_bad: true}`" in caught.value.hint
    trace = read(tmp_path, text, DROP)
    assert [t[1] for t in triples(trace)] == [7, 9]
    assert trace.dropped == {reason.partition(":")[0]: 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        (HEADER, "it is empty"),
        ("[]", "it is empty"),
        ("when,how\n1,2\n", "no column of prompt lengths, got .'how', 'when'."),
        ("time,prompt_tokens\n1,2\n", "no column of output lengths"),
        ('{"prompt_tokens": 1, "output_tokens": 2}\n{"prompt_tokens": 1,\n', "not JSON"),
        ("[1, 2]", "an object is needed, got int"),
        ("[{}", "not JSON"),
    ],
)
def test_files_that_are_no_traces(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, text)


def test_dropping_everything_says_what_was_lost(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no usable request: 1 x length too small"):
        read(tmp_path, HEADER + "2023-01-01,0,8\n", DROP)


def test_json_error_has_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        read(tmp_path, '{"prompt_tokens": 1, "output_tokens": 2}\n{"prompt_tokens": }\n')
    assert caught.value.where.endswith("t.csv:2, column 19")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="not readable"):
        load_trace(tmp_path / "nowhere.csv", RULES)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(TraceError, match="not readable"):
        load_trace(tmp_path / "cut.gz", RULES)
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match="not readable"):
        load_trace(tmp_path / "bin", RULES)


def test_limit_takes_the_first(tmp_path: Path) -> None:
    text = HEADER + "2023-01-01,7,8\n2023-01-02,9,9\nbroken,0,0\n"
    rules = TraceRules(max_model_len=1000, limit=2)
    assert [t[1] for t in triples(read(tmp_path, text, rules))] == [7, 9]
