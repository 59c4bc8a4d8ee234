"""The expected loss of a neighbour's row: the file is what the recorded spaces say."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from table_rows import PROBLEM

from rpa_tune.tables import loss
from rpa_tune.tables.key import FILLED, NEAREST_LIMIT, TuningKey, tuning_key
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


SLOW, FAST, ELSEWHERE = "slow", "fast", "elsewhere"


def test_a_left_out_space_is_given_what_its_neighbours_row_lends(benchmark) -> None:
    """By hand: the heuristic of the space itself, a config, and what was not recorded."""

    def space(time_us, heuristic=None, **changes):
        key = replace(tuning_key(PROBLEM, "v6e", "decode"), **changes)
        return benchmark.Space(key=key, time_us=time_us, heuristic=heuristic, date="")

    ours = space({SLOW: 12.0, FAST: 10.0}, heuristic=SLOW)  # which loses 20 %
    keeps = space({SLOW: 10.0, FAST: 10.4}, heuristic=FAST, has_sinks=True)  # which loses 4 %
    other = space({ELSEWHERE: 1.0}, page_size=2 * PROBLEM.page_size)
    pairs = benchmark.pairs_of([ours, keeps, other])
    sinks, pages = ("has_sinks",), ("page_size",)
    assert [(pair.fields, pair.verdict) for pair in pairs] == [
        (sinks, "heuristic"), (pages, "tuned"), (sinks, "tuned"),
        (("page_size", *sinks), "tuned"), (pages, "tuned"), (("page_size", *sinks), "heuristic"),
    ]  # fmt: skip
    assert [pair.loss_pct and round(pair.loss_pct, 9) for pair in pairs] == [
        20.0, None, 4.0, None, None, None,
    ]  # fmt: skip
    pools = [(r["verdict"], r["mean_pct"], r["fields"]) for r in benchmark.by_distance(pairs)]
    assert pools == [("heuristic", 20.0, ["has_sinks"]), ("tuned", 4.0, ["has_sinks"])]


def test_sizes_that_a_study_fills_cost_less_than_the_simulators_error(benchmark, spaces) -> None:
    """What `FILLED` says, for pairs of keys that differ in those alone."""
    losses = [
        pair.loss_pct
        for pair in benchmark.pairs_of(spaces)
        if pair.fields and set(pair.fields) <= set(FILLED.get(pair.family, ()))
    ]
    counted = [loss for loss in losses if loss is not None]
    assert len(counted) >= 6
    assert max(counted) < 5.0


def test_what_the_best_config_depends_on_is_said_by_field() -> None:
    """docs/plan.md states these; fields without a counted pair are not known."""
    said = {
        (row["family"], row["verdict"], *row["differ_in"]): row
        for row in yaml.safe_load(TABLE.read_text())["fields"]
    }
    for family in ("decode", "mixed"):
        assert said[family, "tuned"]["pairs"] >= 16  # the same key, another workload
        assert said[family, "tuned"]["worst_pct"] < 5.0
        for field in ("max_num_tokens", "num_q_heads", "num_kv_heads", "sliding_window_tokens"):
            assert said[family, "heuristic", field]["pairs"] >= 4
    for field in ("max_num_seqs", "max_context_tokens", "page_size"):
        assert said["decode", "heuristic", field]["pairs"] >= 4
    # so that a row is never filled from another page size or context
    for field in ("page_size", "max_context_tokens"):
        assert said["decode", "heuristic", field]["worst_pct"] > 5.0
    assert "mixed" not in FILLED


def keys(**changes) -> tuple[TuningKey, TuningKey]:
    """A key of decode and another that differs in some fields."""
    asked = tuning_key(PROBLEM, "v6e", changes.pop("family", "decode"))
    return asked, replace(asked, **changes)


def made(pct, edge, *differ_in, fields=()) -> ExpectedLoss:
    return ExpectedLoss(
        pct=pct, worst_pct=9.0, num_pairs=4, up_to_distance=edge, differ_in=differ_in,
        fields=frozenset(fields or differ_in),
    )  # fmt: skip


@pytest.fixture
def table(monkeypatch) -> dict[str, ExpectedLoss]:
    seen = ("page_size", "has_sinks", "return_lse")
    losses = {
        "near": made(2.0, 1.0, fields=seen),
        "far": made(1.0, 4.0, fields=(*seen, "head_dim")),
        "sinks": made(3.0, 1.0, "has_sinks"),
        "pages": made(2.5, 1.0, "page_size"),
        "kept": made(0.5, 4.0, fields=seen),
        "filled": made(2.7, 1.0, "max_num_tokens"),
    }
    by_distance = {
        ("decode", "tuned"): (losses["near"], losses["far"]),
        ("decode", "heuristic"): (losses["kept"],),
    }
    by_fields = {
        ("decode", "tuned", losses[name].fields): losses[name]
        for name in ("sinks", "pages", "filled")
    }
    monkeypatch.setattr(loss, "_by_distance", lambda: by_distance)
    monkeypatch.setattr(loss, "_by_fields", lambda: by_fields)
    return losses


def expected(verdict="tuned", **changes) -> ExpectedLoss | None:
    return expected_loss(*keys(**changes), verdict)


def test_farther_neighbours_are_not_expected_to_lose_less(table) -> None:
    pages = PROBLEM.page_size
    assert expected(page_size=2 * pages) is table["pages"]
    # Farther than any pair of that field alone: those of any field count.
    assert expected(page_size=8 * pages) is table["near"]
    assert expected(page_size=32 * pages) is None
    assert expected(page_size=2 * pages, family="prefill") is None
    assert expected(chip="v7x") is None


def test_pairs_that_differ_in_the_very_fields_say_most(table) -> None:
    assert expected(has_sinks=True) is table["sinks"]
    assert expected(has_sinks=True, return_lse=True) is table["near"]
    assert "4 pairs that differ in has_sinks alone" in str(table["sinks"])
    assert "4 pairs up to distance 1" in str(table["near"])


def test_nothing_is_said_of_a_field_in_which_no_pair_differs(table) -> None:
    assert expected(causal=False) is None
    assert expected(has_sinks=True, update_kv_cache=False) is None
    assert expected(head_dim=PROBLEM.head_dim * 2) is table["near"]  # as far as those that do


def test_sizes_that_a_study_fills_make_no_distance_and_are_a_loss_of_their_own(table) -> None:
    tokens = PROBLEM.max_num_tokens << 9
    assert expected(max_num_tokens=tokens) is table["filled"]
    assert expected(max_num_tokens=tokens, has_sinks=True) is table["sinks"]
    assert expected(max_num_tokens=tokens, page_size=32 * PROBLEM.page_size) is None
    assert expected(max_num_tokens=tokens, family="mixed") is None


def test_a_row_that_keeps_the_heuristic_is_told_by_pairs_of_such_rows(table) -> None:
    assert expected("heuristic", has_sinks=True) is table["kept"]
    assert expected("heuristic", head_dim=PROBLEM.head_dim * 2) is None


def test_fields_count_where_there_are_enough_pairs_as_near_as_look_ups_take_rows() -> None:
    said = {
        (row["family"], row["verdict"], frozenset(row["differ_in"])): row
        for row in yaml.safe_load(TABLE.read_text())["fields"]
        if row["differ_in"]
    }
    used = loss._by_fields()
    assert ("decode", "heuristic", frozenset({"max_num_tokens"})) in used
    for which, row in said.items():
        assert row.get("up_to_distance", 0.0) <= NEAREST_LIMIT
        assert (row["pairs"] >= 4) == (which in used)
