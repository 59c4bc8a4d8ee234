"""The search benchmark: what is recorded is replayed, nobody sees more than was asked for."""

import gzip
import importlib.util
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_study, true_us

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.store.journal import read

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


search, record = load("search"), load("record")
STUDY = make_study()


def fails(config):
    return Status.OUT_OF_MEMORY if config.bkv_sz == 1024 else Status.OK


def made(statuses=None):
    return {
        Fidelity.ANALYTICAL: FormulaEvaluator(Fidelity.ANALYTICAL, scale=0.5),
        Fidelity.SIMULATED: FormulaEvaluator(Fidelity.SIMULATED, statuses=statuses),
    }


def recorded(evaluators, folder, configs=None):
    configs = record.sample_of(STUDY, 1000) if configs is None else configs
    return record.record(STUDY, configs, evaluators, folder=folder, half="design")[0]


@pytest.fixture
def path(tmp_path):
    return recorded(made(fails), tmp_path)


@pytest.fixture(scope="module")
def shipped():
    return [search.load_truth(path) for path in sorted(search.SPACES.glob("*.gz"))]


def ranked_us(truth):
    return [us for us in truth.times_us.values() if us is not None]


def test_what_is_recorded_is_what_is_replayed(path):
    truth = search.load_truth(path)
    configs = {tuple(asdict(config).values()): config for config in STUDY.space().configs}
    assert {tuple(c) for c in truth.times_us} == {
        *configs,
        tuple(asdict(STUDY.heuristic()).values()),
    }
    for point, us in truth.times_us.items():
        config = configs.get(tuple(point), STUDY.heuristic())
        assert us == (None if fails(config) is not Status.OK else true_us(config))
        assert truth.bounds[point] == true_us(config) / 2
    assert truth.best_us == min(true_us(c) for c in configs.values() if fails(c) is Status.OK)
    assert truth.times_us[truth.best] == truth.best_us
    assert truth.half == "design"


def test_recording_again_asks_nothing(path):
    again = made(fails)
    before = path.read_bytes()
    assert recorded(again, path.parent) == path
    assert not again[Fidelity.SIMULATED].asked
    document = [json.loads(gzip.decompress(data)) for data in (before, path.read_bytes())]
    assert document[0]["configs"] == document[1]["configs"]
    (store,) = path.parent.glob("*.jsonl")
    assert len(read(store).evaluations) == 2 * len(document[0]["configs"])


def test_a_sample_holds_the_heuristic_and_is_drawn_blindly(tmp_path):
    few = record.sample_of(STUDY, 9)
    assert few[0] == STUDY.heuristic()
    assert len(set(few)) == 9
    assert few == record.sample_of(STUDY, 9)
    assert few[1:] != list(STUDY.space().configs[:8])


def test_a_space_gets_the_bests_of_those_whose_row_could_stand_in(tmp_path):
    """Another page size can, nearest first; another chip or thirty-two times the heads cannot."""
    pages = replace(STUDY.key, page_size=2 * STUDY.key.page_size)
    fewer = replace(pages, num_kv_heads=STUDY.key.num_kv_heads // 2)
    configs = STUDY.space().configs
    best = {
        "fewer": (fewer, configs[1]),
        "pages": (pages, configs[2]),
        "chip": (replace(STUDY.key, chip="v7x"), configs[3]),
        "far": (replace(STUDY.key, num_q_heads=32 * STUDY.key.num_q_heads), configs[4]),
    }
    assert record.bests_of_others(STUDY, best) == [configs[2], configs[1]]
    impossible = replace(configs[0], bkv_sz=3)
    path, winner = record.record(STUDY, [configs[1], impossible], made(), folder=tmp_path)
    assert winner == configs[1]
    (store,) = path.parent.glob("*.jsonl")
    answers = read(store).evaluations
    assert record.known_of(STUDY, answers) == [configs[1]]
    assert record.known_of(make_study(chip="v7x"), answers) == []


def test_grid_and_random_regrets_by_hand(path):
    truth = search.load_truth(path)
    grid = search.Searcher(kind="exhaustive", start=search.NOTHING)
    for num in (1, 5, 20):
        seen = [truth.times_us[config] for config in truth.space.configs[:num]]
        best = min(us for us in seen if us is not None)
        assert search.regret_pct(truth, grid, num=num) == pytest.approx(
            100 * (best / truth.best_us - 1)
        )
    # One drawn config: over many seeds the mean regret is that of the space.
    draw = search.Searcher(kind="random", start=search.NOTHING)
    fallback = truth.times_us[truth.heuristic]
    each = [(us or fallback) / truth.best_us - 1 for us in truth.times_us.values()]
    drawn = [search.regret_pct(truth, draw, num=1, seed=seed) for seed in range(400)]
    assert statistics.mean(drawn) == pytest.approx(100 * statistics.mean(each), rel=0.15)


@pytest.mark.parametrize("name", [name for name in search.SEARCHERS if "gp" not in name])
def test_no_searcher_sees_more_than_its_share(name, path, monkeypatch):
    truth = search.load_truth(path)
    seen = []
    answer = search.answer
    monkeypatch.setattr(search, "answer", lambda t, c: seen.append(c) or answer(t, c))
    regret = search.regret_pct(truth, search.SEARCHERS[name], num=7, others=[truth])
    assert len(seen) == len(set(seen)) == 7
    times = [truth.times_us[c] for c in seen if truth.times_us[c] is not None]
    assert regret == pytest.approx(100 * (min(times) / truth.best_us - 1))
    everything = search.regret_pct(
        truth, search.SEARCHERS[name], num=len(truth.times_us), others=[truth]
    )
    assert everything == pytest.approx(0)


def test_neighbours_are_other_problems_of_the_design_half(shipped):
    for truth in shipped:
        start = search.seeds(truth, search.NEIGHBOURS, shipped)
        assert start[0] == truth.heuristic
        own = [other for other in shipped if other.key == truth.key or other.half != search.DESIGN]
        assert search.seeds(truth, search.NEIGHBOURS, own) == [truth.heuristic]
        assert search.seeds(truth, search.NOTHING, shipped) == []
    assert any(len(search.seeds(t, search.NEIGHBOURS, shipped)) > 1 for t in shipped)


def test_the_halves_share_no_problem(shipped):
    keys = {half: {t.key for t in shipped if t.half == half} for half in ("design", "held_out")}
    assert keys["design"]
    assert keys["held_out"]
    assert not keys["design"] & keys["held_out"]
    assert len(shipped) >= 30
    assert all(truth.heuristic in truth.times_us for truth in shipped)


def test_the_figures_in_the_repository_are_those_of_todays_search(shipped):
    """The ladder draws nothing, so its figures must come out again to the digit."""
    written = json.loads((BENCHMARKS / "results" / "search.json").read_text())
    today = search.compare(shipped, ["ladder", "ladder_with_neighbours"])
    for share in search.SHARES_PCT:
        for name in ("ladder", "ladder_with_neighbours"):
            figure = f"{name}_at_{share}_pct"
            for part in ("design", "held_out"):
                assert today[part][figure] == pytest.approx(written[part][figure])
            assert today[figure] == pytest.approx(written[figure])
    assert {t.name for t in shipped} == set(written["spaces"])


def test_the_command_writes_the_figures(path, tmp_path):
    file = tmp_path / "out.json"
    result = CliRunner().invoke(search.main, [str(path), "--json", str(file)])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert set(figures["ladder_at_15_pct"]) >= {"median_regret", "worst_regret"}
    assert f"{figures['optuna_at_50_pct']['worst_regret']:.2f}" in result.output
    regrets = [figures[f"random_at_{share}_pct"]["worst_regret"] for share in search.SHARES_PCT]
    assert regrets[0] > regrets[-1] >= 0
    assert figures["design"]["grid_at_25_pct"] == figures["grid_at_25_pct"]
    assert "held_out" not in figures
