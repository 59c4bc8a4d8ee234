"""Ranks that share a workload's requests: a rate is divided, requests without one are dealt out."""

import pytest

from rpa_tune.workload.arrivals import Arrivals, Process
from rpa_tune.workload.build import serve
from rpa_tune.workload.request import Request, deal
from rpa_tune.workload.spec import read_spec


@pytest.mark.parametrize(
    ("given", "one", "hands"),
    [
        ({"request_rate": 12.0, "max_concurrency": 9},
         {"request_rate": 3.0, "max_concurrency": 3}, 1),
        ({"process": Process.POISSON, "request_rate": 12.0},
         {"process": Process.POISSON, "request_rate": 3.0}, 1),
        ({"process": Process.CLOSED_LOOP, "max_concurrency": 10},
         {"process": Process.CLOSED_LOOP, "max_concurrency": 3}, 1),
        ({"process": Process.AT_ONCE}, {"process": Process.AT_ONCE}, 4),
        ({"process": Process.TRACE, "max_concurrency": 8},
         {"process": Process.TRACE, "max_concurrency": 2}, 4),
        ({}, {}, 4),
    ],
)  # fmt: skip
def test_what_comes_to_one_of_four_ranks(given, one, hands) -> None:
    assert Arrivals(**given).share(4) == (Arrivals(**one), hands)
    assert Arrivals(**given).share(1) == (Arrivals(**given), 1)


def test_conversations_are_dealt_out_whole() -> None:
    turns = [None, None, 0, None, 2, 1]  # conversations 0, 1 and 2
    requests = [
        Request(arrival_s=i, prompt_tokens=10 + i, output_tokens=1, after=after)
        for i, after in enumerate(turns)
    ]
    mine = deal(requests, 2)
    assert [(r.prompt_tokens, r.after) for r in mine] == [(10, None), (12, 0), (13, None), (14, 1)]
    assert deal(requests, 1) == tuple(requests)
    assert [r.prompt_tokens for r in deal(requests, 9)] == [10, 12, 14]


def spec(arrivals, count=64):
    requests = {"count": count, "prompt_tokens": 50, "output_tokens": 40}
    data = {"requests": requests, "arrivals": arrivals, "engine": {"max_num_seqs": 64}}
    return read_spec(data, page_size=128)


def test_a_rank_of_a_batch_job_has_its_share_at_once() -> None:
    """64 requests at once are 16 for each of four ranks, and not 64."""
    whole, rank = (serve(spec({"process": "at_once"}), ranks=ranks) for ranks in (1, 4))
    assert max(step.num_seqs for step in whole.steps) == 64
    assert max(step.num_seqs for step in rank.steps) == 16
    assert len(rank.requests) == 16
    assert rank.spec.source.endswith("one request in 4, as a rank gets them")


def test_a_rate_is_divided_and_all_requests_stay() -> None:
    rank = serve(spec({"process": "poisson", "request_rate": 8}), ranks=4)
    assert len(rank.requests) == 64
    assert rank.requests[-1].arrival_s == pytest.approx(64 / 2, rel=0.5)


def test_times_of_a_trace_stay_those_of_the_trace(tmp_path) -> None:
    """Without a rate every fourth request comes when it came: a quarter of the trace's rate."""
    path = tmp_path / "trace.csv"
    rows = "".join(f"{second},50,40\n" for second in range(40))
    path.write_text(f"time,prompt_tokens,output_tokens\n{rows}")
    rank = serve(read_spec({"requests": {"trace": str(path)}}, page_size=128), ranks=4)
    assert [request.arrival_s for request in rank.requests] == list(range(0, 40, 4))
