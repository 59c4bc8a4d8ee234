"""`rpa-tune explain --compare` with a stand-in for the compiler."""

import json

import pytest
from pure.evaluate.builders import CONFIG

from rpa_tune.cli import compare_text
from rpa_tune.cli.main import main
from rpa_tune.evaluate import simulated

FIELDS = ",".join(f"{k}={v}" for k, v in CONFIG.items())
LARGER = FIELDS.replace("bkv_sz=128", "bkv_sz=256")


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate")
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"q_lens": [1, 1], "kv_lens": [300, 20], "num_decode": 2}))

    def run(*options):
        args = ["explain", "--chip", "v6e", "--family", "decode", "--model", "llama3-8b",
                "--batch", str(batch), "--cache", str(tmp_path / "cache")]  # fmt: skip
        with pytest.raises(SystemExit) as exited:
            main([*args, *options])
        out = capsys.readouterr()
        return exited.value.code or 0, out.out, out.err

    return run


def test_two_configs_side_by_side(run):
    code, out, _ = run("--compare", FIELDS, LARGER)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("decode on v6e: llama3-8b, ")
    assert lines[1] == f"A  {FIELDS.replace(',', ' ')}"
    assert "B has bkv_sz=256 instead of 128" in lines
    ratio = lines.index("B takes 2.000 of A's time")  # the stand-in spends cycles on `bkv_sz`
    assert lines[ratio + 1] == "   +100.0 %, more than the simulator's error of 5 %"
    (issue,) = [line.split() for line in lines if line.strip().startswith("issue (")]
    assert [part.replace(",", "") for part in issue[-3:]] == ["256", "512", "+256"]
    assert "(bundles with vector, matrix, load or store work) " in out  # no name is cut
    code, out, _ = run("--compare", FIELDS, LARGER, "--json")
    assert code == 0
    assert json.loads(out)["causes"][0]["name"] == "issue"


def test_options_of_one_config_are_refused_beside_it(run):
    for option in (["--config", FIELDS], ["--tries", "2"], ["--trace", "t.json"]):
        code, _, err = run("--compare", FIELDS, LARGER, *option)
        assert code == 2
        assert f"{option[0]} is of no use beside --compare" in err


def test_a_config_that_does_not_exist_is_named(run):
    code, _, err = run("--compare", FIELDS, FIELDS.replace("bkv_sz=128", "bkv_sz=100"))
    assert code == 2
    assert "bkv_sz=100" in err
    assert "has no time to compare: infeasible" in err


def test_long_tables_are_cut(capsys):
    from rpa_tune.analysis.compare import Change

    changes = [Change(name=str(n), before=n, after=None) for n in range(12)]
    compare_text.print_changes("t", changes)
    out = capsys.readouterr().out
    assert "and 4 with smaller changes" in out
    assert "none" in out


def test_causes_add_up_and_nothing_is_no_signed_zero(capsys):
    from rpa_tune.analysis.compare import Change

    changes = [Change(name="a", before=5, after=2), Change(name="b", before=4, after=4)]
    compare_text.print_changes("t", changes, adds_up=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["a", "5", "2", "-3"], ["b", "4", "4", "0"], ["all", "9", "6", "-3"]]


@pytest.mark.parametrize(
    ("after_us", "said"),
    [(104.0, "+4.0 %, within"), (106.0, "+6.0 %, more than"), (95.5, "-4.5 %, within"),
     (94.0, "-6.0 %, more than")],
)  # fmt: skip
def test_a_difference_is_held_against_the_error(capsys, after_us, said):
    compare_text.print_ratio((100.0, after_us), ([100.0, 100.0, 100.0, 100.0], [99, 99, 101, 101]))
    out = capsys.readouterr().out
    assert f"{said} the simulator's error of 5 %" in out
    assert "faster under 50% of its parameter sets" in out


def test_a_step_without_a_trace_is_refused(run):
    code, _, err = run("--trace-step")
    assert code == 2
    assert "--trace-step says what --trace writes" in err
