"""The expected loss of a neighbour's row: the file is what the recorded spaces say."""

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from rpa_tune.tables import loss
from rpa_tune.tables.key import FILLED, differences
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


def test_farther_neighbours_are_not_expected_to_lose_less(monkeypatch) -> None:
    near, far = (
        ExpectedLoss(pct=pct, worst_pct=9.0, num_pairs=1, up_to_distance=edge)
        for pct, edge in ((2.0, 1.0), (1.0, 4.0))
    )
    monkeypatch.setattr(loss, "_table", lambda: {"decode": (near, far)})
    assert expected_loss("decode", 0.5) is near
    assert expected_loss("decode", 3.0) is near
    assert expected_loss("decode", 5.0) is None
    assert expected_loss("prefill", 0.5) is None
