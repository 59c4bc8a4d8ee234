"""Synthetic lengths, arrival processes, and conversations."""

import numpy as np
import pytest

from rpa_tune.errors import UsageError
from rpa_tune.workload.arrivals import Arrivals, Process
from rpa_tune.workload.lengths import read_lengths
from rpa_tune.workload.request import Request
from rpa_tune.workload.synthetic import Synthetic

EACH_SECOND = [Request(arrival_s=float(i), prompt_tokens=5, output_tokens=5) for i in range(2001)]


def draw(data: object, count: int = 20_000) -> np.ndarray:
    return read_lengths(data, "here").draw(np.random.default_rng(0), count)


def test_constant_and_uniform() -> None:
    assert set(draw(77)) == {77}
    assert set(draw({"uniform": {"low": 3, "high": 6}})) == {3, 4, 5, 6}


def test_lognormal_has_its_median_and_sigma() -> None:
    lengths = draw({"lognormal": {"median": 500, "sigma": 0.5}})
    assert np.median(lengths) == pytest.approx(500, rel=0.02)
    assert np.log(lengths).std() == pytest.approx(0.5, rel=0.02)


def test_zipf_falls_with_its_exponent() -> None:
    lengths = draw({"zipf": {"exponent": 2.0, "unit": 10}})
    ones, twos = (lengths == 10).mean(), (lengths == 20).mean()
    assert ones / twos == pytest.approx(4.0, rel=0.1)
    assert set(lengths % 10) == {0}


def test_bimodal_has_both_modes() -> None:
    lengths = draw({"bimodal": {"short": 100, "long": 9000, "long_share": 0.25, "sigma": 0.0}})
    assert set(lengths) == {100, 9000}
    assert (lengths == 9000).mean() == pytest.approx(0.25, abs=0.02)


def test_limits_clip() -> None:
    lengths = draw({"lognormal": {"median": 500, "sigma": 2.0}, "least": 100, "most": 900})
    assert (lengths.min(), lengths.max()) == (100, 900)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("many", "a mapping is needed"),
        ({}, "one distribution is needed"),
        ({"constant": {"tokens": 1}, "zipf": {"exponent": 2.0}}, "one distribution is needed"),
        ({"normal": {"mean": 3}}, "unknown key 'normal'"),
        ({"uniform": {"low": 9, "high": 3}}, "low=9 must not exceed high=3"),
        ({"zipf": {"exponent": 1.0}}, "exponent=1.0 must be above 1"),
        ({"lognormal": {"median": 0.5, "sigma": 1}}, "median=0.5"),
        ({"bimodal": {"short": 1, "long": 2, "long_share": 2}}, "long_share=2.0 must be 0 to 1"),
        ({"constant": {}}, "missing key 'tokens'"),
        ({"constant": {"tokens": 5}, "least": 9, "most": 3}, "least=9"),
    ],
)
def test_bad_lengths(data: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_lengths(data, "here")
    assert caught.value.where.startswith("here")


def gaps(arrivals: Arrivals, seed: int = 0) -> np.ndarray:
    times = [r.arrival_s for r in arrivals.apply(EACH_SECOND, seed=seed)]
    assert times[0] == 0.0
    return np.diff(times)


def test_trace_times_keep_their_shape_at_another_rate() -> None:
    assert gaps(Arrivals()) == pytest.approx(1.0)
    assert gaps(Arrivals(request_rate=4)) == pytest.approx(0.25)


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gamma_gaps_have_the_rate_and_the_burstiness(burstiness: float, variation: float) -> None:
    found = gaps(Arrivals(process=Process.GAMMA, request_rate=5, burstiness=burstiness))
    assert found.mean() == pytest.approx(0.2, rel=0.1)
    assert found.std() / found.mean() == pytest.approx(variation, rel=0.1)


def test_poisson_is_gamma_of_burstiness_one_and_follows_the_seed() -> None:
    poisson = Arrivals(process=Process.POISSON, request_rate=5, burstiness=0.1)
    assert (gaps(poisson) == gaps(Arrivals(process=Process.GAMMA, request_rate=5))).all()
    assert (gaps(poisson, 1) != gaps(poisson, 2)).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process": Process.POISSON}, "needs a request_rate"),
        ({"process": Process.CLOSED_LOOP}, "needs a max_concurrency"),
        ({"request_rate": 0.0}, "must be above 0"),
        ({"request_rate": float("nan")}, "must be above 0"),
        ({"burstiness": 0.0}, "must be above 0"),
        ({"max_concurrency": 0}, "at least 1"),
    ],
)
def test_bad_arrivals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arrivals(**fields)


def synthetic(**fields: object) -> tuple[Request, ...]:
    lengths = {"prompt_tokens": read_lengths(10, ""), "output_tokens": read_lengths(5, "")}
    return Synthetic(**{"count": 8, **lengths, **fields}).requests(max_model_len=50, seed=0)


def test_turns_contain_the_turns_before() -> None:
    requests = synthetic(turns=2, num_conversations=2, shared_prefix_tokens=4)
    assert [r.prompt_tokens for r in requests] == [14, 14, 29, 29, 14, 14, 29, 29]
    for first, second in ((0, 2), (1, 3)):
        assert requests[second].prefix[: len(requests[first].prefix)] == requests[first].prefix
    assert requests[0].prefix == (("shared", 4), ("turn0", 19))
    assert [r.after for r in requests] == [None, None, 0, 1, None, None, 4, 5]
    assert requests[4].prefix[1] != requests[0].prefix[1]


def test_conversation_that_outgrows_the_model_starts_again() -> None:
    prompts = [r.prompt_tokens for r in synthetic(turns=8)]
    assert prompts == [10, 25, 40, 10, 25, 40, 10, 25]
    assert [r.after for r in synthetic(turns=8)] == [None, 0, 1, None, 3, 4, None, 6]


def test_prompts_leave_room_for_the_answer() -> None:
    requests = synthetic(
        prompt_tokens=read_lengths(500, ""),
        output_tokens=read_lengths(9, ""),
    )
    assert {r.prompt_tokens for r in requests} == {41}
    requests = synthetic(output_tokens=read_lengths(500, ""))
    assert {(r.prompt_tokens, r.output_tokens) for r in requests} == {(1, 49)}
