"""The simulation of what a sweep costs: cases whose answer is known without it."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_study

from rpa_tune.candidate import Fidelity
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.lineup import line_up
from rpa_tune.sweep.sampler import Search

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "sweep_cost.py"
SEARCH = Search(simulate=20, wave=8, configs=2)


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location("benchmark_sweep_cost", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def durations(cost, simulate=10.0, verify=5.0, parent=(0.0, 0.0, 0.0)):
    families = cost.FAMILIES
    return cost.Durations(
        simulate=dict.fromkeys(families, (simulate,)),
        verify=dict.fromkeys(families, (verify,)),
        parent=dict.fromkeys(families, parent),
    )


def play(cost, workers, families, **pieces):
    layout = cost.Layout(name="", num_runs=1, workers=workers)
    return cost.play(layout, families, durations(cost, **pieces), SEARCH)


def test_one_core_takes_the_sum_of_all_work(cost):
    found = play(cost, 1, ["decode", "mixed"] * 5)
    assert found["work_core_hours"] == round(10 * (20 * 10 + 2 * 5) / 3600, 2)
    assert found["simulated_hours"] == found["on_paper_hours"]
    assert found["use_of_cores_pct"] == 100.0


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [(8, 3 * 10 + 2 * 5), (4, 20 / 4 * 10 + 2 * 5), (64, 3 * 10 + 2 * 5)],
)
def test_one_study_is_no_quicker_than_its_waves(cost, workers, seconds):
    assert play(cost, workers, ["decode"])["simulated_hours"] == round(seconds / 3600, 3)


def test_a_study_waits_for_its_teachers(cost):
    """Five of one family: the 2nd and 3rd wait for the 1st, the 4th and 5th for two."""
    families = ["decode"] * 5
    places = line_up([type("Study", (), {"family": f}) for f in families])
    generation = {}
    for place in places:
        generation[place.index] = 1 + max((generation[t] for t in place.teachers), default=-1)
    assert max(generation.values()) == 2
    one = play(cost, 1000, ["decode"])["simulated_hours"]
    assert play(cost, 1000, families)["simulated_hours"] == pytest.approx(3 * one, rel=0.05)


def test_the_parent_is_one_core_only(cost):
    parent = (100.0, 1.0, 2.0)
    found = play(cost, 1000, ["decode"] * 9, simulate=0.1, verify=0.1, parent=parent)
    assert found["parent_hours"] == round(9 * 104 / 3600, 2)
    assert found["simulated_hours"] >= found["parent_hours"] - 0.01


def test_shards_have_cores_of_their_own(cost):
    families = ["decode", "mixed", "prefill"] * 32
    one = play(cost, 4, families)
    layout = cost.Layout(name="", num_runs=4, workers=4)
    four = cost.play(layout, families, durations(cost), SEARCH)
    assert four["work_core_hours"] == one["work_core_hours"]
    assert one["simulated_hours"] / 4 <= four["simulated_hours"] < one["simulated_hours"] / 3


def test_durations_come_from_stores_without_what_was_cached(cost, tmp_path):
    study = make_study()
    evaluator = FormulaEvaluator(Fidelity.SIMULATED)
    with Journal(tmp_path / "s.jsonl") as store:
        for config, metrics in zip(
            study.space().configs,
            ({"evaluate_s": 3.0}, {"evaluate_s": 0.1, "from_cache": True}, {}),
            strict=False,
        ):
            store.append(replace(evaluator.answer(study.candidate(config)), metrics=metrics))
    simulate, verify = cost.read_durations([tmp_path / "s.jsonl"])
    assert simulate == {"decode": [3.0], "mixed": [], "prefill": []}
    assert verify["decode"] == []


def test_the_command_runs_again_from_its_own_result(cost, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "measure_parent", lambda study: [1.0, 0.1, 0.1])
    monkeypatch.setattr(cost, "NUM_PROBLEMS", 2)
    known = {family: [2.0, 4.0] for family in cost.FAMILIES}
    file = tmp_path / "out.json"
    file.write_text(json.dumps({"durations_s": {"simulate": known, "verify": known}}))
    result = CliRunner().invoke(cost.main, ["--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["num_studies"] == 30
    assert [row["cores"] for row in found["rows"]] == [1, 16, 256, 256]
    times = [row["simulated_hours"] for row in found["rows"]]
    assert times[0] > times[1] > times[2]
    assert found["durations_s"]["simulate"] == known
