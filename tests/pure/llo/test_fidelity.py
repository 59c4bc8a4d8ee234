"""The verdict of `benchmarks/fidelity.py`: every row is in it, and it can fail."""

import importlib
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rpa_tune.errors import UsageError
from rpa_tune.llo.calibrate import Fit, predict
from rpa_tune.llo.machine import load_machine

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of `benchmarks` by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def run(fidelity, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["fidelity.py", *map(str, args)])
    fidelity.main()


def test_every_row_handed_over_is_loaded_and_says_what_it_is(benchmark):
    rows = benchmark("measured").load_rows()
    assert len(rows) == 27 + 72 + 325
    assert len({row.name for row in rows}) == len(rows)
    assert {row.part for row in rows} == {"decode", "prefill", "dense"}
    assert {row.chip for row in rows} == {"v5e", "v5p", "v6e", "v7x"}
    assert all(row.origin and row.measured_us > 0 for row in rows)
    by_name = {row.name: row for row in rows}
    # Twins are held out together, whoever measured them.
    assert by_name["v3-7"].group == by_name["sglang-16"].group == by_name["sglang-0"].group
    assert by_name["stacked-70"].group != by_name["stacked-71"].group


def test_every_row_is_recorded_or_says_why_not(benchmark):
    measured = benchmark("measured")
    rows = measured.load_rows()
    observations, _ = measured.load_observations(rows)
    silent = [r.name for r in rows if not r.left_out and r.name not in observations]
    assert silent == []
    assert not [r.name for r in rows if r.left_out and r.name in observations], "no reason needed"
    assert all(r.source.startswith("tokamax") for r in rows if r.left_out)


def test_rows_of_whole_programs_are_predicted_and_not_fitted(benchmark):
    rows = benchmark("measured").load_rows()
    tokamax = [row for row in rows if row.source.startswith("tokamax")]
    assert {row.chip for row in tokamax if row.is_fitted} == {"v5p"}
    assert all(row.is_fitted for row in rows if row not in tokamax)
    assert {row.part for row in tokamax if row.source == "tokamax rpa"} == {"decode", "prefill"}


def test_guesses_vary_in_the_sets_of_a_chip_whose_fit_leaves_them(benchmark):
    fits = benchmark("fidelity_fits")
    machine = load_machine("v5p")
    names = ("matmul_latency_bf16_cycles", "matmul_latency_f32_cycles")
    fitted = Fit(
        machine=machine, values={name: machine.value(name) for name in names}, predicted_us=(),
        held_out_us=(), covariance=np.diag([1e-4, 1e-4]),
    )  # fmt: skip
    found, values, _ = fits.sets_of(fitted, 0.03)
    spread = dict(zip(found, np.log(values).std(axis=0), strict=True))
    assert all(spread[name] < 0.03 for name in names), "measured"
    assert spread["read_linear_bytes_per_s"] > 0.1, "guessed"
    assert spread["write_linear_bytes_per_s"] == spread["read_linear_bytes_per_s"], "a follower"


def test_the_machine_table_is_what_the_rows_give(benchmark):
    """Times of the table are near those of the fit that `--refit` wrote it from."""
    measured = benchmark("measured")
    rows = measured.load_rows()
    observations, _ = measured.load_observations(rows)
    chosen = [r for r in rows if r.name in ("sglang-19", "sglang-56", "stacked-69", "v3-2")]
    for row in chosen:
        (us,) = predict(load_machine(row.chip), [observations[row.name]])
        assert us == pytest.approx(row.measured_us, rel=0.1), row.name


def test_a_damaged_recording_is_refused(benchmark, monkeypatch, tmp_path):
    measured = benchmark("measured")
    damaged = tmp_path / "recordings.zip"
    with zipfile.ZipFile(measured.RECORDINGS) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content + b"x" if name == "v3-9" else content)
    monkeypatch.setattr(measured, "RECORDINGS", damaged)
    with pytest.raises(UsageError, match="v3-9 is not what the manifest says"):
        measured.load_observations(measured.load_rows())
    monkeypatch.setattr(measured, "RECORDINGS", tmp_path / "none.zip")
    with pytest.raises(UsageError, match="cannot read recordings"):
        measured.load_observations(measured.load_rows())


def test_a_recording_of_another_call_is_refused(benchmark):
    measured = benchmark("measured")
    (row,) = [row for row in measured.load_rows() if row.name == "v3-9"]
    with pytest.raises(UsageError, match="v3-9 was recorded of another call"):
        measured.load_observations((replace(row, call="0" * 16),))


def test_kept_recordings_are_a_function_of_what_they_hold(benchmark, monkeypatch, tmp_path):
    measured = benchmark("measured")
    contents = []
    kept = {"v3-1": b"1", "v3-0": b"0"}
    for name, order in (("a.zip", kept), ("b.zip", dict(sorted(kept.items())))):
        monkeypatch.setattr(measured, "RECORDINGS", tmp_path / name)
        measured.keep(order, dict.fromkeys(order, "x"))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_a_chip_is_judged_by_rows_that_its_fits_had_not_seen(benchmark, monkeypatch, tmp_path):
    fidelity = benchmark("fidelity")
    output, page = tmp_path / "out.json", tmp_path / "page.md"
    page.write_text("by hand\n\n<!-- tables of fidelity.py -->\n\nold tables\n")
    run(fidelity, monkeypatch, "--chip", "v5e", "--json", output, "--markdown", page)
    found = json.loads(output.read_text())
    (chip,) = found["by_chip"].values()
    assert set(chip) == {
        "n", "median_abs_error", "worst_abs_error", "bias", "rank_correlation",
        "interval_coverage", "interval_half_width",
    }  # fmt: skip
    assert chip["n"] == 4
    assert 0 < chip["median_abs_error"] <= chip["worst_abs_error"] < 1, "fractions"
    rows = {row["row"]: row for row in found["rows"]}
    assert len(rows) == 9
    assert all("bundles alone" in rows[f"v3-{i}"]["contradiction"] for i in range(13, 18))
    kept = [row for row in rows.values() if not row["contradiction"]]
    assert len(kept) == 4
    assert all(row["error"] != row["fitted_error"] for row in kept), "held out"
    text = page.read_text()
    assert text.startswith("by hand\n")
    assert "old tables" not in text
    assert "| v3-9 | v5e |" in text


def test_a_public_winner_is_compared_with_the_blocks_beside_it(benchmark):
    """By recordings of other rows that stand for those of other blocks, a shorter and a longer."""
    fidelity, measured, fits = map(benchmark, ("fidelity", "measured", "fidelity_fits"))
    rows = measured.load_rows()
    winner = next(row for row in rows if row.name == "sglang-16")
    others = measured.load_choices([winner])
    assert [row.name for row in others] == ["sglang-16/4", "sglang-16/8", "sglang-16/32"]
    assert {row.contents["block_sizes"]["bkv_p"] for row in others} == {4, 8, 32}
    assert len({winner.call, *(row.call for row in others)}) == 4, "recorded apart"
    names = ("sglang-16", "sglang-24", "sglang-20")
    seen, _ = measured.load_observations(tuple(row for row in rows if row.name in names))
    machine = load_machine("v6e")
    known = {"sglang-16/8": seen["sglang-24"], "sglang-16/32": seen["sglang-20"]}
    (us,) = predict(machine, [seen["sglang-16"]])
    predictions = {"sglang-16": fits.Prediction(held_out_us=us, fitted_us=None, machine=machine)}
    (found,) = fidelity.beside_winners([winner], seen | known, predictions)
    assert set(found["others_us"]) == {"8", "32"}, "what is recorded"
    assert found["others_us"]["8"] < us < found["others_us"]["32"]
    assert found["behind"] == pytest.approx(us / found["others_us"]["8"] - 1)
    only_worse = seen | {"sglang-16/32": seen["sglang-20"]}
    (found,) = fidelity.beside_winners([winner], only_worse, predictions)
    assert found["behind"] == 0.0
    assert fidelity.beside_winners([winner], seen, predictions) == []


def test_a_row_left_out_ends_the_run_with_its_name(benchmark, monkeypatch, tmp_path):
    fidelity, measured = benchmark("fidelity"), benchmark("measured")
    load = measured.load_observations

    def without_one(rows):
        observations, manifest = load(rows)
        return {name: seen for name, seen in observations.items() if name != "v3-13"}, manifest

    monkeypatch.setattr(measured, "load_observations", without_one)
    with pytest.raises(SystemExit) as ended:
        run(fidelity, monkeypatch, "--chip", "v5e", "--json", tmp_path / "out.json")
    assert "v3-13" in str(ended.value)
    assert (tmp_path / "out.json").exists(), "what there is, is said"


def test_a_row_that_no_machine_can_explain_is_a_contradiction(benchmark):
    fidelity, measured = benchmark("fidelity"), benchmark("measured")
    rows = {row.name: row for row in measured.load_rows()}
    observations, _ = measured.load_observations(tuple(rows.values()))
    row, seen = rows["sglang-48"], observations["sglang-48"]
    assert not fidelity.find_contradiction(row, seen)
    assert "bundles alone" in fidelity.find_contradiction(replace(row, measured_us=40.0), seen)
    assert "whole call" in fidelity.find_contradiction(replace(row, is_device_time=False), seen)


def test_parameter_sets_are_as_wide_as_unseen_rows_were_off(benchmark):
    fits = benchmark("fidelity_fits")
    narrow, wide = fits.scales(0.02), fits.scales(0.2)
    assert len(narrow) == len(wide) == fits.NUM_SETS
    assert max(narrow) < 1.05 < 1.3 < max(wide)
    assert fits.deviation_of([0.05, -0.05, 0.05, -0.05]) == pytest.approx(0.05, rel=0.05)
    assert fits.deviation_of([0.0] * 40 + [3.0]) == fits._LEAST_DEVIATION, "one far row of many"
