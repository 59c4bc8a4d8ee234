"""`rpa-tune status`: a running store, a dead one, and files that are none."""

import json

from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_study

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.cli.main import cli
from rpa_tune.errors import StoreError
from rpa_tune.store.journal import Journal


def status(*arguments):
    return CliRunner().invoke(cli, ["status", *map(str, arguments)])


def test_a_running_and_a_dead_store(tmp_path):
    path = tmp_path / "store.jsonl"
    study = make_study()
    configs = study.space().configs[:3]
    failing = FormulaEvaluator(
        Fidelity.SIMULATED,
        statuses=lambda c: Status.OUT_OF_MEMORY if c == configs[2] else Status.OK,
    )
    bound = FormulaEvaluator(Fidelity.ANALYTICAL)
    with Journal(path) as journal:
        journal.append(bound.answer(study.candidate(configs[0])))
        for config in configs:
            journal.append(failing.answer(study.candidate(config)))
        running = json.loads(status(path, "--json").stdout)
    assert running["running"]
    summary = running["studies"][0]
    assert (summary["analytical"], summary["evaluated"]) == (1, 3)
    assert summary["statuses"] == {"ok": 2, "out_of_memory": 1}
    assert summary["best_us"] == min(
        failing.answer(study.candidate(c)).time_us for c in configs[:2]
    )
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    dead = status(path).stdout
    assert "v6e/decode, 8/2 heads of 128" in dead
    assert "1 out_of_memory" in dead
    assert "4 answers; no sweep is writing" in dead


def test_files_that_are_no_stores(tmp_path):
    (tmp_path / "x").write_text("rubbish\n")
    for name in ("none", "x"):
        result = status(tmp_path / name)
        assert isinstance(result.exception, StoreError)
