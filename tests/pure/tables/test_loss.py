"""The expected loss of a neighbour's row: the file is what the recorded spaces say."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from table_rows import PROBLEM

from rpa_tune.tables import loss
from rpa_tune.tables.key import FILLED, NEAREST_LIMIT, TuningKey, differences, tuning_key
from rpa_tune.tables.loss import TABLE, ExpectedLoss, expected_loss

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "expected_loss.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("expected_loss_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def spaces(benchmark):
    return [
        benchmark.load_space(path)
        for folder in benchmark.FOLDERS
        for path in sorted(folder.glob("*.truth.json.gz"))
    ]


def test_the_table_is_that_of_the_recorded_spaces(benchmark, spaces) -> None:
    assert yaml.safe_load(TABLE.read_text()) == benchmark.table(spaces)


def test_a_left_out_space_is_given_its_neighbours_best_config(benchmark, spaces) -> None:
    """By hand: regret of one pair, and the one whose config was not recorded."""
    ours, theirs = spaces[0], spaces[0]
    slow, fast = (("a", 1),), (("a", 2),)
    ours = benchmark.Space(key=ours.key, time_us={slow: 12.0, fast: 10.0}, date="")
    theirs = benchmark.Space(key=ours.key, time_us={slow: 3.0, fast: 4.0}, date="")
    other = benchmark.Space(key=ours.key, time_us={(("a", 3),): 1.0}, date="")
    found = benchmark.regrets([ours, theirs, other])
    assert found == {(ours.key.family, 0.0): [pytest.approx(20.0), pytest.approx(100 / 3)]}


def test_sizes_that_a_study_fills_cost_less_than_the_simulators_error(spaces) -> None:
    """What `FILLED` says, for pairs of keys that differ in those alone."""
    losses = []
    for ours in spaces:
        for theirs in spaces:
            changed = set(differences(ours.key, theirs.key))
            if changed and changed <= set(FILLED.get(ours.key.family, ())):
                losses.append(100 * (ours.time_us[theirs.best] / min(ours.time_us.values()) - 1))
    assert len(losses) >= 4
    assert max(losses) < 5.0


def test_what_the_best_config_depends_on_is_said_by_field(spaces) -> None:
    """docs/plan.md states these; fields without a counted pair are not known."""
    said = {
        (row["family"], tuple(row["differ_in"])): row
        for row in yaml.safe_load(TABLE.read_text())["fields"]
    }
    for family in ("decode", "mixed"):  # the same key, another workload
        assert said[family, ()]["pairs"] >= 16
        assert said[family, ()]["worst_pct"] < 5.0
    for family, fields in FILLED.items():
        if family == "decode":
            assert said[family, fields]["pairs"] >= 4
            assert said[family, fields]["worst_pct"] < 5.0
    heads = said["decode", ("num_q_heads", "num_kv_heads")]
    assert heads["worst_pct"] > 20.0  # so that a row is never filled from other heads
    assert said["mixed", ("max_num_tokens",)]["pairs"] == 0  # and mixed fills nothing
    assert "mixed" not in FILLED


def keys(**changes) -> tuple[TuningKey, TuningKey]:
    """A key of decode and another that differs in some fields."""
    asked = tuning_key(PROBLEM, "v6e", changes.pop("family", "decode"))
    return asked, replace(asked, **changes)


def made(pct, edge, *differ_in) -> ExpectedLoss:
    return ExpectedLoss(
        pct=pct, worst_pct=9.0, num_pairs=4, up_to_distance=edge, differ_in=differ_in
    )


@pytest.fixture
def table(monkeypatch) -> dict[str, ExpectedLoss]:
    losses = {"near": made(2.0, 1.0), "far": made(1.0, 4.0), "sinks": made(3.0, 1.0, "has_sinks")}
    by_distance = {"decode": (losses["near"], losses["far"])}
    losses["pinned"] = replace(made(0.5, 4.0), pins_default=True)
    losses["filled"] = made(2.5, 1.0, "max_num_tokens")
    fields = ("sinks", "has_sinks"), ("filled", "max_num_tokens")
    by_fields = {("decode", frozenset({field})): losses[name] for name, field in fields}
    pinned = {"decode": (losses["pinned"],)}
    monkeypatch.setattr(
        loss, "_by_distance", lambda *, pins_default: pinned if pins_default else by_distance
    )
    monkeypatch.setattr(loss, "_by_fields", lambda: by_fields)
    return losses


def test_farther_neighbours_are_not_expected_to_lose_less(table) -> None:
    pages = PROBLEM.page_size
    assert expected_loss(*keys(page_size=2 * pages)) is table["near"]
    assert expected_loss(*keys(page_size=8 * pages)) is table["near"]
    assert expected_loss(*keys(page_size=32 * pages)) is None
    assert expected_loss(*keys(page_size=2 * pages, family="prefill")) is None
    assert expected_loss(*keys(chip="v7x")) is None


def test_pairs_that_differ_in_the_very_fields_say_most(table) -> None:
    assert expected_loss(*keys(has_sinks=True)) is table["sinks"]
    assert expected_loss(*keys(has_sinks=True, return_lse=True)) is table["near"]
    assert "4 pairs that differ in has_sinks alone" in str(table["sinks"])
    assert "4 pairs up to distance 1" in str(table["near"])


def test_sizes_that_a_study_fills_make_no_distance_and_are_a_loss_of_their_own(table) -> None:
    tokens = PROBLEM.max_num_tokens << 9
    assert expected_loss(*keys(max_num_tokens=tokens)) is table["filled"]
    assert expected_loss(*keys(max_num_tokens=tokens, has_sinks=True)) is table["sinks"]
    far = {"max_num_tokens": tokens, "page_size": 32 * PROBLEM.page_size}
    assert expected_loss(*keys(**far)) is None
    assert expected_loss(*keys(max_num_tokens=tokens, family="mixed")) is None


def test_a_row_that_pins_the_heuristic_costs_what_heuristics_lost_there(table) -> None:
    for changes in ({"has_sinks": True}, {"max_num_tokens": 8}, {"page_size": 8}):
        assert expected_loss(*keys(**changes), pins_default=True) is table["pinned"]
    assert "whose rows pin the heuristic" in str(table["pinned"])


def test_pairs_of_pinned_rows_by_hand(benchmark, spaces) -> None:
    """Only where the other space's heuristic is within the error of its best does it count."""
    key, fast, slow = spaces[0].key, "fast", "slow"
    ours = benchmark.Space(key=key, time_us={fast: 10.0, slow: 12.0}, date="", heuristic=slow)
    pins = benchmark.Space(key=key, time_us={fast: 10.0, slow: 10.4}, date="", heuristic=slow)
    untimed = benchmark.Space(key=key, time_us={fast: 10.0}, date="", heuristic=slow)
    assert (ours.pins_default, pins.pins_default, untimed.pins_default) == (False, True, False)
    found = benchmark.regrets([ours, pins, untimed], pinned=True)
    assert found == {(key.family, 0.0): [pytest.approx(20.0)]}


def test_fields_count_where_enough_pairs_are_near_enough() -> None:
    """Those of the file: no more of them, and none from pairs that no look-up would take."""
    said = {
        (row["family"], frozenset(row["differ_in"])): row
        for row in yaml.safe_load(TABLE.read_text())["fields"]
        if row["differ_in"]
    }
    used = loss._by_fields()
    assert ("decode", frozenset({"max_num_tokens"})) in used
    assert ("decode", frozenset({"num_kv_heads"})) in used
    for which, row in said.items():
        is_near = row["pairs"] >= 4 and row["up_to_distance"] <= NEAREST_LIMIT
        assert is_near == (which in used)
