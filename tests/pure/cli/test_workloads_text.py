"""Tables and histograms of workloads, from plain values."""

import pytest

from rpa_tune.cli.workloads_text import BAR_CELLS, HISTOGRAMS, print_list, print_summary

HISTOGRAM = {
    "mean": 30.0, "p50": 20, "p95": 90, "p100": 1234,
    "upper": [1, 2, 64, 2048], "share": [0.0, 0.0, 0.75, 0.25],
}  # fmt: skip
SUMMARY = {
    "name": "x[bold]", "source": "made [red]up[/]",
    "distributions": dict.fromkeys(HISTOGRAMS, HISTOGRAM),
}  # fmt: skip


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")

    def text_of(**more) -> str:
        print_summary({**SUMMARY, **more})
        return capsys.readouterr().out

    return text_of


def test_names_are_no_markup(said) -> None:
    assert said().startswith("x[bold]: made [red]up[/]\n")


def test_bars_are_shares_of_the_largest_and_empty_bins_below_are_left_out(said) -> None:
    lines = said().splitlines()
    bars = [line for line in lines if "≤" in line]
    assert len(bars) == 2 * len(HISTOGRAMS)
    assert "75.0%" in bars[0]
    assert "25.0%" in bars[1]
    assert bars[0].count("█") == BAR_CELLS
    assert bars[1].count("█") == round(BAR_CELLS / 3)
    heads = [line for line in lines if ": mean" in line]
    assert [head.split(":")[0] for head in heads] == list(HISTOGRAMS.values())
    assert heads[0].endswith("mean 30.0, median 20, 95th percentile 90, maximum 1,234")


def test_only_the_parts_that_a_summary_has_are_there(said) -> None:
    assert "launches" not in said().split("\n\n")[0]
    kinds = {"decode_only": {"num_steps": 1200, "launch_share": 0.5, "attention_time_share": 0.25}}
    assert "decode-only" in said(kinds=kinds)
    assert "1,200" in said(kinds=kinds)
    batch = {"weight": 0.125, "num_decode": 3, "num_prefill": 0, "num_mixed": 1, "num_tokens": 67,
             "context_tokens": 9000, "longest_context_tokens": 8000}  # fmt: skip
    text = said(batches=[batch], digest="abc")
    assert "1 batches (digest abc)" in text
    assert [cell for cell in text.splitlines()[-1].split() if cell] == [
        "0.125", "3", "0", "1", "67", "9,000", "8,000",
    ]  # fmt: skip


def test_how_a_trace_was_read_is_said_unless_the_source_says_it(said) -> None:
    assert "read as: Mooncake" in said(trace={"summary": "Mooncake"})
    assert "read as" not in said(trace={"summary": "made [red]up[/]"})


def test_requests_and_what_was_dropped(said) -> None:
    text = said(
        requests={"count": 1000, "prompt_tokens": {"p50": 10, "p95": 2000},
                  "output_tokens": {"p50": 5, "p95": 9}},
        engine={"num_steps": 50, "engine_s": 3.0, "num_preemptions": 1, "num_cached_tokens": 2},
        num_ramp_steps=7, dropped={"bad time": 3},
    )  # fmt: skip
    assert "1,000 requests; prompt tokens: median 10, 95th percentile 2,000" in text
    assert "50 launches in 3 s of engine time (guess); 1 preemptions" in text
    assert "7 launches of ramp-up and ramp-down are excluded" in text
    assert "dropped 3: bad time" in text


def test_errors_of_a_compression_have_a_sign(said) -> None:
    text = said(compression={"num_batches": 4, "num_steps": 1000, "worst_error": 0.02,
                             "time_error": {"decode": -0.015, "mixed": 0.0},
                             "held_out_time_error": {"bytes": {"decode": 0.01}}})  # fmt: skip
    assert "4 batches represent 1,000 launches" in text
    assert "kernel time: decode -1.50%, mixed +0.00%" in text
    assert "held out: bytes: decode +1.00%" in text


def test_a_list_has_presets_and_traces(capsys: pytest.CaptureFixture[str]) -> None:
    print_list({"p": {"about": "what", "source": "from\n  where"}}, ["t1", "t2"])
    out = capsys.readouterr().out
    assert "from where" in out
    assert out.rstrip().endswith("Traces: t1, t2 (`--trace NAME`, or `requests: {trace: NAME}`)")
