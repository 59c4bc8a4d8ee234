"""`rpa-tune explain` with a stand-in for the compiler: options, output, exit codes."""

import json

import pytest
from pure.evaluate.builders import CONFIG

from rpa_tune.cli.explain_text import BOUNDS
from rpa_tune.cli.main import main
from rpa_tune.evaluate import simulated

CONFIG_TEXT = ",".join(f"{k}={v}" for k, v in CONFIG.items())


@pytest.fixture(autouse=True)
def fake_task(monkeypatch):
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate")


@pytest.fixture
def batch_file(tmp_path):
    path = tmp_path / "batch.json"
    path.write_text(json.dumps({"q_lens": [1, 1, 9], "kv_lens": [300, 20, 9], "num_decode": 2}))
    return path


@pytest.fixture
def run(tmp_path, batch_file, capsys):
    """Runs the command; options given replace the good ones, None leaves one out."""

    def run(**options):
        good = {
            "chip": "v6e", "family": "decode", "model": "llama3-8b", "batch": str(batch_file),
            "config": CONFIG_TEXT, "cache": str(tmp_path / "cache"), "deadline": "20",
        }  # fmt: skip
        args = ["explain"]
        for name, value in (good | options).items():
            if value is True:
                args.append(f"--{name}")
            elif value is not None:
                args += [f"--{name}", str(value)]
        with pytest.raises(SystemExit) as exited:
            main(args)
        out = capsys.readouterr()
        return exited.value.code or 0, out.out, out.err

    return run


def test_json_has_the_promised_keys_and_owners_that_add_up(run):
    code, out, _ = run(json=True)
    answer = json.loads(out)
    assert code == 0
    assert answer["status"] == "ok"
    assert sum(answer["cycles_by_owner"].values()) == answer["total_cycles"] > 0
    for key in ("time_us", "mbu", "mfu", "bound_by", "hbm_bytes", "vmem_bytes", "lower_bound_us"):
        assert answer[key] is not None
    assert answer["config"] == CONFIG
    assert len(answer["batches"]) == 1
    assert answer["batches"][0]["weight"] == 1.0


def test_text_says_time_bound_owners_and_what_is_guessed(run):
    code, out, _ = run()
    assert code == 0
    assert "time " in out
    assert BOUNDS["hbm"] in out
    assert "cycles by owner" in out
    assert "issue" in out
    assert "guesses behind the time: none" in out
    assert "2 decode, 0 prefill and 1 mixed sequences" in out


def test_without_config_it_is_the_default(run):
    code, out, _ = run(config=None, json=True)
    answer = json.loads(out)
    assert answer["is_default_config"] is True
    assert set(answer["config"]) == set(CONFIG)
    assert code in (0, 1)  # the stand-in misbehaves for some numbers of buffers


def test_some_fields_change_the_default(run):
    _, out, _ = run(config="num_buffers=2,bq_sz=16", json=True)
    answer = json.loads(out)
    assert (answer["config"]["num_buffers"], answer["config"]["bq_sz"]) == (2, 16)
    assert answer["is_default_config"] is False


@pytest.mark.parametrize(
    ("config", "status", "detail"),
    [("bkv_sz=100,bkv_csz=100", "infeasible", "page_size"), ("num_buffers=9", "out_of_memory", "")],
)
def test_no_time_is_exit_code_1_with_the_reason_and_all_keys(run, config, status, detail):
    code, out, _ = run(config=f"num_buffers=2,{config}" if "bkv" in config else config, json=True)
    answer = json.loads(out)
    assert code == 1
    assert answer["status"] == status
    assert detail in answer["detail"]
    assert answer["time_us"] is answer["total_cycles"] is answer["cycles_by_owner"] is None
    code, out, _ = run(config=config)
    assert code == 1
    assert f"{status}: " in out


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"chip": "v8"}, "unknown chip 'v8'", "known chips"),
        ({"model": "lama3-8b"}, "unknown model", "did you mean llama3-8b?"),
        ({"batch": None, "workload": "azure"}, "unknown workload 'azure'", "azure-conv"),
        ({"batch": None}, "one of --workload and --batch", ""),
        ({"config": "bkv=3"}, "'bkv' is not a field", "bkv_sz"),
        ({"config": "bkv_sz=3,bkv_sz=4"}, "is not a new name=integer", ""),
        ({"config": "bkv_sz=x"}, "is not a new name=integer", ""),
        ({"config": "bkv_sz=-1"}, "is not a new name=integer", ""),
        ({"tp": 3}, "cannot run at tp=3", "use one of"),
        ({"page-size": 0}, "page_size=0", ""),
        ({"windowed": True}, "no layers that a kernel family serves for windowed=True", "32 full"),
        ({"layers": "window-8"}, "for layers='window-8'", "32 full"),
        ({"family": "decoder"}, "'decoder' is not one of", ""),
    ],
)
def test_bad_options_are_usage_errors(run, options, message, hint):
    code, out, err = run(**options)
    assert code == 2
    assert out == ""
    assert message in err
    assert hint in err


@pytest.mark.parametrize(
    "content", ["", "[]", '{"q_lens": [1]}', '{"q_lens": [1], "kv_lens": [0], "num_decode": 1}']
)
def test_a_bad_batch_file_is_named(run, tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    code, _, err = run(batch=str(path))
    assert code == 2
    assert str(path) in err
    assert "num_decode" in err


def test_a_batch_that_does_not_launch_the_family(run, tmp_path):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"q_lens": [9], "kv_lens": [9], "num_decode": 0}))
    code, _, err = run(batch=str(path))
    assert code == 2
    assert "never launches family 'decode'" in err
