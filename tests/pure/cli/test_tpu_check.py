"""`rpa-tune tpu-check`: its lines, its table, its exit codes."""

import os
from pathlib import Path

import pytest
from pure.check.host_of_a_tpu import DEVICE, DeadError, Host

from rpa_tune.check import run, steps
from rpa_tune.cli.main import main
from rpa_tune.evaluate import measured


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Host().install(monkeypatch)


@pytest.fixture
def invoke(capsys):
    """Runs the command: (exit code, stdout, stderr)."""

    def invoke(*args):
        with pytest.raises(SystemExit) as exited:
            main(["tpu-check", *args])
        said = capsys.readouterr()
        return exited.value.code or 0, said.out, said.err

    return invoke


def test_no_arguments_are_needed_on_a_tpu_host(host, invoke):
    code, out, err = invoke()
    assert code == 0, err
    assert "this takes about" in err
    assert "(a guess); into tpu-check.json" in err
    assert "[1/4] environment" in err
    assert "v6e (TPU v6 lite), 4 devices, 33.0 GB of HBM each" in err
    assert "warning  libtpu" in err
    assert "hint: watch" in err
    assert "[4/4] artifact: ok" in err
    assert len([line for line in out.splitlines() if line.endswith("  inside")]) == 10
    assert "kernels: 10 ok" in out
    assert "rpa-tune calibrate tpu-check.json" in out
    assert os.listdir() == ["tpu-check.json"]
    code, out, err = invoke()
    assert code == 0
    assert "30 parts are known from tpu-check.json" in err
    assert err.count("[kept]") == 30


def test_a_failed_part_is_in_the_text_and_in_the_exit_code(host, invoke):
    def dies(_):
        raise DeadError("exit code -6")

    host.answers[steps._RUN] = dies
    code, out, err = invoke("--json", "mine.json")
    assert code == 1
    assert "failed   decode and mixed" in err
    assert "hint: report this with the file" in err
    assert "artifact: 1 failed" in out
    assert Path("mine.json").exists()


def test_an_interruption_says_how_to_go_on(host, invoke):
    def interrupted(_):
        raise KeyboardInterrupt

    host.answers[measured.TASK] = interrupted
    code, _, err = invoke()
    assert code == 130
    assert "tpu-check.json has what is done; the same command goes on" in err


def test_a_rehearsal_has_a_file_of_its_own_and_no_measurement(host, invoke):
    host.answers[run._INSPECT] = lambda _: {**DEVICE, "platform": "cpu", "chip": ""}
    code, out, err = invoke("--rehearse", "--chip", "trillium")
    assert code == 0
    assert "REHEARSAL for v6e on a CPU: no time here is a measurement" in err
    assert "CPU us, not measured" in out
    assert "measured us" not in out
    assert "inside" not in out
    assert "calibrate" not in out
    assert os.listdir() == ["tpu-check-rehearsal.json"]


def test_a_new_start_says_what_changed_and_where_the_old_file_is(host, invoke):
    invoke()
    host.answers[run._INSPECT] = lambda _: {**DEVICE, "num_devices": 8}
    code, _, err = invoke()
    assert code == 0
    assert "was of something else (num_devices 4, now 8): it is tpu-check.1.json now" in err


def test_a_device_that_is_not_there(host, invoke):
    host.answers[run._INSPECT] = lambda _: {**DEVICE, "platform": "cpu", "chip": ""}
    code, out, err = invoke()
    assert code == 1
    assert "no TPU here: jax finds a cpu only" in err
    assert "hint: to try the command without one: --rehearse --chip v6e" in err
    assert "kernels: 1 not run" in out
    assert "calibrate" not in out  # there is nothing to send


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--rehearse",), "a rehearsal needs the name of a chip"),
        (("--chip", "v9"), "unknown chip 'v9'"),
        (("--chip", "v5e"), "the device is a v6e (TPU v6 lite), not a v5e"),
        (("--budget", "soon"), "--budget='soon'"),
        (("--budget", "-1h"), "--budget="),
        (("--json", "."), "it exists, and is no file of"),
    ],
)
def test_usage(host, invoke, args, said):
    code, _, err = invoke(*args)
    assert code == 2
    assert said in err
    assert os.listdir() == []
