"""Gains over the heuristic by group, and where it is to be mended."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from fake_sweep import PROBLEM, make_study, true_us
from pure.report.stores import write_store

from rpa_kernels.family import config_to_dict
from rpa_tune.cli.main import cli
from rpa_tune.errors import UsageError
from rpa_tune.report.gains import Gain, gains, gains_text, spreads, to_mend
from rpa_tune.report.study import load_studies


def gain(pct, *, chip="v6e", model="a", verdict="heuristic"):
    return Gain(study=f"{chip}/{model}/{pct}", chip=chip, family="decode", model=model,
                verdict=verdict, gain_pct=pct, low_pct=pct - 5, high_pct=pct + 5,
                times_are="simulated")  # fmt: skip


def test_the_distribution_of_each_group() -> None:
    found = [gain(float(i)) for i in range(10)] + [gain(40.0, model="b", verdict="tuned")]
    first, second = spreads(found, lambda g: g.model)
    assert (first.of, first.studies, first.tuned) == ("a", 10, 0)
    assert (first.median_pct, first.p90_pct, first.most_pct) == (4.5, 8.0, 9.0)
    assert (second.studies, second.tuned, second.p90_pct) == (1, 1, 40.0)
    assert [g.gain_pct for g in to_mend([*found, gain(10.0), gain(50.0)])] == [50.0, 40.0]
    assert "in 1 of 11 studies, to be mended" in gains_text(found)[-2]
    assert gains_text([]) == ["no study has a time of the heuristic and of another config"]


def test_the_gains_of_a_store(tmp_path) -> None:
    study = make_study(name="v6e/llama3-8b/decode", problem=PROBLEM, simulate=1000)
    store = write_store(tmp_path / "fleet.jsonl", [study])
    (found,) = gains(load_studies(store, "fleet"))
    best = min(true_us(config) for config in study.space().configs)
    expected = 100 * (true_us(study.heuristic()) / best - 1)
    assert found.gain_pct == pytest.approx(expected, abs=6)  # the store's times are a little noisy
    assert (found.chip, found.family, found.model) == ("v6e", "decode", "llama3-8b")
    assert found.low_pct < found.gain_pct < found.high_pct
    assert found.today_pct is None  # today's heuristic is that of the study
    printed = CliRunner().invoke(cli, ["report", str(store), "--gains", "--json"])
    said = json.loads(printed.stdout)
    assert said["studies"][0]["gain_pct"] == found.gain_pct
    assert said["to_mend"] == [found.study] * (found.gain_pct > 10)
    shown = CliRunner().invoke(cli, ["report", str(store), "--gains"])
    assert shown.stdout.splitlines() == gains_text([found])
    refused = CliRunner().invoke(cli, ["report", str(store), "--json"])
    assert isinstance(refused.exception, UsageError)


def test_a_heuristic_that_was_mended_is_told_by_the_times_that_a_study_has(tmp_path) -> None:
    study = make_study(name="v6e/llama3-8b/decode", problem=PROBLEM, simulate=1000)
    store = write_store(tmp_path / "fleet.jsonl", [study])
    (view,) = load_studies(store, "fleet")
    slow = max(study.space().configs, key=true_us)
    (found,) = gains([replace(view, plan=replace(view.plan, heuristic=config_to_dict(slow)))])
    (now,) = gains([view])
    assert found.today_pct == now.gain_pct
    assert gains_text([found])[-1].startswith("today's heuristic is another one in 1 studies")
