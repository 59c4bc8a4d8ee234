"""How `--dry-run` looks; `tests/pure/sweep` has what it counts."""

import json
from dataclasses import asdict, replace

import pytest

from rpa_tune.cli.forecast import print_forecast
from rpa_tune.sweep.forecast import StudyForecast

ROW = StudyForecast(
    study="v6e/decode", padding="", grid=1024, feasible=600, simulate_at_most=20, known=3,
    verify_at_most=2, seconds=90.5, seconds_are="a guess",
    rejected={"bkv_sz % bkv_csz": 24, "vmem_bytes": 400},
)  # fmt: skip
OTHER = replace(ROW, study="v6e/mixed", padding="padding: 1 of 2", rejected={}, seconds=9.5)


def test_studies_their_rejections_and_the_sum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_forecast([ROW, OTHER], as_json=False)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "1,024" in line and "v6e/decode" in line]
    assert line.replace("│", " ").split() == ["v6e/decode", "1,024", "600", "20", "3", "90.5"]
    rest = out[out.index("v6e/decode: ") :].splitlines()
    assert rest == [
        "v6e/decode: 400 configs are infeasible: vmem_bytes",  # the most frequent first
        "v6e/decode: 24 configs are infeasible: bkv_sz % bkv_csz",
        "v6e/mixed: padding: 1 of 2",
        "about 100 s in total (a guess); nothing was run",
    ]


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_forecast([ROW], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"studies": [asdict(ROW)]}
