"""Few configs that fit most: from answers to a rule, a row, a curve, and the dispatcher."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_evaluators
from table_rows import make_row

from rpa_kernels import load_family
from rpa_tune.candidate import Fidelity
from rpa_tune.cli.main import cli
from rpa_tune.decide.portfolio import portfolio_curve
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.sweep import run as sweep_module
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.step import Lengths, Step

PLAN = """\
chip: v6e
model: llama3-8b
families: [decode]
page_size: 128
workload: {requests: {capture: steps.jsonl}, compress: {batches: 0}}
space:
  decode: {bkv_sz: [256, 1024], bkv_csz: [256], seqs_per_step: [1], num_buffers: [3], bq_sz: [8]}
search: {simulate: 4, configs: %d}
"""
STEPS = "".join(
    json.dumps(line) + "\n"
    for line in [
        {"schema": "rpa-capture/1", "page_size": 128, "every": 1},
        *({"t": i, "q": [1] * 4, "kv": [longest] * 4, "nd": 4}
          for i, longest in enumerate((200, 300, 6000, 7000))),
    ]
)  # fmt: skip
REAL = json.loads((Path(__file__).parents[2] / "golden" / "portfolio.json").read_text())


class SplitEvaluator(FormulaEvaluator):
    """Small blocks win on short contexts, large ones on long: each half of the batches."""

    def evaluate_all(self, candidates, workload):
        for candidate in candidates:
            times = tuple(
                100.0
                if candidate.config.bkv_sz == (256 if max(w.batch.kv_lens) < 1000 else 1024)
                else 150.0
                for w in workload.batches
            )
            mean = sum(w.weight * t for w, t in zip(workload.batches, times, strict=True))
            yield replace(self.answer(candidate), time_us=mean, batch_us=times)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "plan.yaml").write_text(PLAN % 2)
    (tmp_path / "steps.jsonl").write_text(STEPS)
    monkeypatch.chdir(tmp_path)
    made = make_evaluators()
    made[Fidelity.SIMULATED] = SplitEvaluator(Fidelity.SIMULATED)
    monkeypatch.setattr(sweep_module, "make_evaluators", lambda *_: dict(made))
    # What is asked must not depend on the rows that ship today.
    monkeypatch.setattr(sweep_module, "shipped_folder", lambda: tmp_path / "none")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli, list(arguments))


def test_two_configs_that_each_win_half_the_steps_share_a_row_and_the_dispatcher_obeys(folder):
    result = run("sweep", "plan.yaml")
    assert result.exit_code == 0, result.output
    assert "regret 0 % of 3 tried (best of at most 1 config 25 %, 2 configs 0 %)" in result.stdout
    (row,) = load_tables([folder / "tuned_tables"])
    assert [config["bkv_sz"] for config in row.configs] == [256, 1024]
    assert (row.evidence.time_us, row.evidence.regret_by_num_configs_pct) == (100.0, (25.0, 0.0))
    (study,) = build_studies(load_plan(folder / "plan.yaml"))
    dispatcher = load_dispatcher("v6e", folder / "tuned_tables")
    picked = {}
    for weighted in study.workload.batches:
        plan = dispatcher.plan(study.problem, Step.of_batch(weighted.batch))
        picked[max(weighted.batch.kv_lens)] = plan.launches[0].config.bkv_sz
    assert picked == {200: 256, 300: 256, 6000: 1024, 7000: 1024}


def test_the_plan_says_how_many_configs_a_row_may_have(folder):
    (folder / "plan.yaml").write_text(PLAN % 1)
    assert run("sweep", "plan.yaml").exit_code == 0
    (row,) = load_tables([folder / "tuned_tables"])
    assert len(row.configs) == 1
    # What a second one would gain is told all the same.
    assert row.evidence.regret_by_num_configs_pct == (25.0, 0.0)
    assert row.evidence.regret_pct >= 25.0


def test_a_plan_for_more_configs_than_a_row_holds_is_refused(folder):
    (folder / "plan.yaml").write_text(PLAN % 9)
    with pytest.raises(UsageError, match=r"configs=9.*at most 8") as caught:
        load_plan(folder / "plan.yaml")
    assert "plan.yaml:8" in caught.value.where


def test_the_curve_is_printed_from_the_store(folder):
    assert run("sweep", "plan.yaml").exit_code == 0
    result = run("portfolio", "plan.yaml", "--json")
    assert result.exit_code == 0, result.output
    (document,) = json.loads(result.stdout)
    assert (document["num_batches"], document["fidelity"]) == (4, "simulated")
    one, two = document["curve"]
    assert (one["regret_pct"], two["regret_pct"]) == (25.0, 0.0)
    assert two["rule"] == [{"if": "longest_context_tokens", "at_most": 4096, "use": 0}, {"use": 1}]
    text = run("portfolio", "plan.yaml").stdout
    assert "longest_context_tokens <= 4096: bkv_sz=256" in text
    assert "25.00" in text


def test_without_answers_it_says_so_and_fails(folder):
    result = run("portfolio", "plan.yaml")
    assert result.exit_code == 3
    assert "no results in the store" in result.stdout


def test_answers_of_other_versions_do_not_count(folder):
    assert run("sweep", "plan.yaml").exit_code == 0
    store = folder / ".rpa-tune" / "plan.jsonl"
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    for line in lines[1:]:
        if "provenance" in line:
            line["provenance"]["kernel"] = "0" * 16
    store.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("portfolio", "plan.yaml")
    assert result.exit_code == 3
    assert "of other versions left out" in result.stdout


def test_tables_show_prints_the_regret(folder):
    assert run("sweep", "plan.yaml").exit_code == 0
    shown = run("tables", "show", "tuned_tables").stdout
    assert "regret 0 % of 3 tried (best of at most 1 config 25 %, 2 configs 0 %)" in shown


def test_a_real_store():
    """Answers of the simulator: the curve falls, and the dispatcher's picks cost what it says."""
    configs = [tuple(sorted(answer["config"].items())) for answer in REAL["answers"]]
    times = dict(zip(configs, (a["batch_us"] for a in REAL["answers"]), strict=True))
    lengths = [Lengths(**batch["lengths"]) for batch in REAL["batches"]]
    weights = [batch["weight"] for batch in REAL["batches"]]
    curve = portfolio_curve(times, weights, lengths)
    regrets = [entry.regret_pct for entry in curve]
    assert regrets == sorted(regrets, reverse=True)
    assert regrets[0] > 4 > 1 > regrets[1]  # one config loses 4.6 %, two lose 0.8 %
    family, row = load_family("mixed"), make_row("mixed")
    for entry in curve:
        row = replace(row, configs=tuple(map(dict, entry.configs)), rule=entry.rule)
        picks = [configs.index(entry.configs[row.pick(length)]) for length in lengths]
        cost = sum(
            w * times[configs[p]][i] for i, (w, p) in enumerate(zip(weights, picks, strict=True))
        )
        assert cost / sum(weights) == pytest.approx(entry.time_us)
        found = [family.config_to_dict(family.config_from_dict(c)) for c in row.configs]
        assert found == list(row.configs)
