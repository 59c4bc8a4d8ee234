"""Portfolios: exact for their form, never worse with more configs, readable."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_tune.decide.portfolio import portfolio_curve, roundest
from rpa_tune.tables.step import FEATURES, Lengths

SHORT, LONG = [10.0, 11.0, 90.0, 95.0], [30.0, 31.0, 50.0, 52.0]
LENGTHS = [Lengths.of([1] * n, [kv] * n) for n, kv in ((4, 100), (4, 200), (4, 3000), (4, 5000))]
EQUAL = [0.25] * 4


def choose_portfolio(*args, max_configs):
    return portfolio_curve(*args, max_configs=max_configs, least_gain_pct=0)[-1]


def cost(portfolio, batch_us, weights, lengths):
    """What the rule would cost, worked out from the rule alone."""
    total = 0.0
    for i, (weight, length) in enumerate(zip(weights, lengths, strict=True)):
        use = next(clause.use for clause in portfolio.rule if clause.holds(length))
        total += weight * batch_us[portfolio.configs[use]][i]
    return total / sum(weights)


def test_two_configs_split_by_context():
    both = choose_portfolio({"a": SHORT, "b": LONG}, EQUAL, LENGTHS, max_configs=2)
    assert set(both.configs) == {"a", "b"}
    assert [(c.feature, c.at_most) for c in both.rule] == [
        ("longest_context_tokens", 2048),
        ("", 0),
    ]
    assert both.time_us == pytest.approx((10 + 11 + 50 + 52) / 4)
    assert both.regret_pct == pytest.approx(0)


def test_one_config_is_the_best_on_average():
    one = choose_portfolio({"a": SHORT, "b": LONG}, EQUAL, LENGTHS, max_configs=1)
    assert one.configs == ("b",)
    assert len(one.rule) == 1
    assert one.regret_pct == pytest.approx(100 * (163 / 123 - 1))


def test_the_curve_says_what_each_config_more_is_worth():
    one, two = portfolio_curve({"a": SHORT, "b": LONG, "c": [99.0] * 4}, EQUAL, LENGTHS)
    assert one.configs == ("b",)
    assert set(two.configs) == {"a", "b"}
    assert [one.regret_pct, two.regret_pct] == pytest.approx([100 * (163 / 123 - 1), 0])


def test_a_config_must_gain_something_to_count():
    times = {"a": [10.0, 10.0, 10.0, 10.0], "b": [11.0, 11.0, 9.97, 9.97]}
    assert len(portfolio_curve(times, EQUAL, LENGTHS, least_gain_pct=0.2)) == 1
    assert len(portfolio_curve(times, EQUAL, LENGTHS, least_gain_pct=0.1)) == 2


def test_the_curve_goes_on_over_a_number_that_gains_nothing():
    """Two pieces cannot serve the ends apart from the middle, three can."""
    times = {"ends": [10.0, 29.0, 29.0, 10.0], "middle": [90.0, 10.0, 10.0, 90.0]}
    curve = portfolio_curve(times, EQUAL, LENGTHS)
    assert [len(entry.configs) for entry in curve] == [1, 1, 2]
    assert curve[2].time_us == pytest.approx(10)


def test_a_third_config_that_gains_nothing_is_left_out():
    times = {"a": SHORT, "b": LONG, "c": [99.0] * 4}
    assert len(choose_portfolio(times, EQUAL, LENGTHS, max_configs=3).configs) == 2


def test_batches_that_look_alike_cannot_be_told_apart():
    same = [LENGTHS[0]] * 2
    found = choose_portfolio({"a": [1.0, 9.0], "b": [9.0, 2.0]}, [0.5, 0.5], same, max_configs=2)
    assert found.configs == ("a",)
    assert found.time_us == 5.0


tables = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(1, 100), min_size=n, max_size=n), min_size=1, max_size=4),
        st.lists(st.floats(0.1, 1), min_size=n, max_size=n),
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), min_size=n, max_size=n),
    )
)


@settings(deadline=None, max_examples=60)
@given(tables)
def test_it_costs_what_it_says_and_no_rule_of_its_form_is_better(table):
    rows, weights, shapes = table
    times = dict(enumerate(rows))
    lengths = [Lengths.of([1] * n, [kv] * n) for n, kv in shapes]
    previous = float("inf")
    for k in (1, 2, 3):
        found = choose_portfolio(times, weights, lengths, max_configs=k)
        assert cost(found, times, weights, lengths) == pytest.approx(found.time_us)
        assert len(found.configs) <= k
        assert found.oracle_us <= found.time_us * (1 + 1e-9)
        assert found.time_us <= previous * (1 + 1e-9)
        previous = found.time_us
    # Two pieces, by brute force over feature, limit and configs.
    two = choose_portfolio(times, weights, lengths, max_configs=2)
    for feature, (a, b) in itertools.product(FEATURES, itertools.product(times, repeat=2)):
        for limit in {getattr(length, feature) for length in lengths}:
            total = sum(
                w * times[a if getattr(length, feature) <= limit else b][i]
                for i, (w, length) in enumerate(zip(weights, lengths, strict=True))
            )
            assert two.time_us <= total / sum(weights) * (1 + 1e-9)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_limits_are_round_and_inside(a, b):
    low, high = sorted((a, b))
    limit = roundest(low, high)
    assert low <= limit <= high
    if low < high:
        assert limit % 2 == 0 or high - low < 2


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="at least one config"):
        choose_portfolio({}, [1.0], LENGTHS[:1], max_configs=1)
    with pytest.raises(ValueError, match="2 batches"):
        choose_portfolio({"a": [1.0]}, [1.0, 1.0], LENGTHS[:2], max_configs=1)
    with pytest.raises(ValueError, match="lengths and weights"):
        choose_portfolio({"a": [1.0]}, [1.0], LENGTHS[:2], max_configs=1)
    with pytest.raises(ValueError, match="lengths and weights"):
        choose_portfolio({"a": [1.0]}, [0.0], LENGTHS[:1], max_configs=1)
