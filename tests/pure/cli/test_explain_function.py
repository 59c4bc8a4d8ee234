"""`rpa-tune explain MODULE:FUNCTION` without a compiler: options, output, exit codes."""

import gzip
import json

import numpy as np
import pytest
from golden import make

from rpa_tune.candidate import Status
from rpa_tune.cli import explain_function
from rpa_tune.cli.main import main
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.profile import profile, read_sources
from rpa_tune.llo.simulate import simulate
from rpa_tune.user_kernel.answer import CallName, KernelAnswer
from rpa_tune.user_kernel.arguments import ArrayArgument
from rpa_tune.user_kernel.explain import KernelExplanation

NAME = "0.0.42.1/v6e_decode.txt.gz"
CALL = CallName(name="rows", operands=("int32[8]",), grid=(4, -1), is_in_loop=True)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The tasks that were sent; each is answered with a golden schedule."""
    tasks = []

    def answer(task, name, *, deadline_s, on_phase):
        tasks.append((task, deadline_s))
        on_phase("compile")
        status = Status.OUT_OF_MEMORY if task.keywords.get("block") == 9 else Status.OK
        if status is not Status.OK:
            found = KernelAnswer(status=status, detail="vmem: too small", call=CALL)
            return KernelExplanation(name=name, chip=task.chip, answer=found)
        schedule = tmp_path / "kept.txt.gz"
        text = make.unpack(make.DUMPS / NAME, tmp_path).read_text()
        schedule.write_bytes(gzip.compress(text.encode()))
        program, machine, operands = (
            make.program(NAME),
            load_machine("v6e"),
            make.operands("decode"),
        )
        found = KernelAnswer(
            status=status, call=CALL, others=("other",), schedule=schedule, scalars=operands,
            timeline=simulate(program, machine, operands), spaces={0: "smem", 1: "vmem"},
            costs={"lower_s": 0.5, "compile_s": 1.0, "from_cache": False, "vmem_bytes": 2_000_000,
                   "vmem_spill_bytes": 500_000, "simulate_s": 0.1},
        )  # fmt: skip
        profiled = profile(program, machine, operands, read_sources(text))
        return KernelExplanation(name=name, chip=task.chip, answer=found, profile=profiled)

    monkeypatch.setattr(explain_function, "explain_task", answer)
    return tasks


@pytest.fixture
def run(asked, capsys, tmp_path):
    def run(*args, chip="v6e"):
        with pytest.raises(SystemExit) as exited:
            main(["explain", "my:kernel", "--chip", chip, "--cache", str(tmp_path), *args])
        out = capsys.readouterr()
        return exited.value.code or 0, out.out, out.err

    return run


def test_everything_that_is_known_without_an_account_is_said(run, asked, tmp_path):
    values = tmp_path / "v.npz"
    np.savez(values, lens=np.arange(8, dtype=np.int32))
    code, out, _ = run(
        "--shapes", "s32[8] causal=True", "--config", "block=2", "--values", str(values),
        "--call", "rows", "--deadline", "30",
    )  # fmt: skip
    assert code == 0
    for text in (
        "my:kernel on v6e: Pallas call rows", "operands  int32[8]; grid 4 x ?",
        "XLA puts 1 into fast memory", "not explained: other", "launched in a loop",
        "us a launch, simulated", "0.5 MB of it spill slots", "cycles by cause",
        "cycles by phase", "cycles by source line", "no line", "loops", "slot use over",
        "guessed parameters",
    ):  # fmt: skip
        assert text in out
    ((task, deadline_s),) = asked
    assert task.function == "my:kernel"
    assert task.arguments.positional == (ArrayArgument(dtype="int32", shape=(8,)),)
    assert (task.arguments.keywords, task.keywords) == ({"causal": True}, {"block": 2})
    assert task.values["lens"].tolist() == list(range(8))
    assert (task.call, deadline_s) == ("rows", 30)


def test_json_trace_and_schedule(run, tmp_path):
    trace, dump = tmp_path / "t.json", tmp_path / "s.txt"
    code, out, _ = run("--json", "--trace", str(trace), "--trace-step", "--dump", str(dump))
    assert code == 0
    found = json.loads(out)
    assert found["call"]["name"] == "rows"
    assert found["timeline"]["total_cycles"] == sum(found["timeline"]["cycles_by_owner"].values())
    assert sum(found["phases"].values()) < found["timeline"]["total_cycles"]  # without the launch
    assert dump.read_text() == make.unpack(make.DUMPS / NAME, tmp_path).read_text()
    assert json.loads(trace.read_text())["otherData"]["kernel"] == "my:kernel rows"


def test_two_versions_side_by_side(run, asked):
    code, out, err = run("--shapes", "s32[8]", "--compare", "block=1", "block=2")
    assert code == 0
    said = [line.split("] ")[1] for line in err.splitlines()]  # who waits is told what for
    assert [line for line in said if "compiling" in line] == ["A: compiling", "B: compiling"]
    assert [task.keywords for task, _ in asked] == [{"block": 1}, {"block": 2}]
    assert "B takes 1.000 of A's time" in out
    assert "instructions by unit" in out
    code, out, _ = run("--json", "--compare", "block=1", "block=2")
    assert json.loads(out)["ratio"] == 1.0
    code, _, err = run("--compare", "block=1", "block=9")
    assert code == 2
    assert "block=9 has no time to compare: out_of_memory: vmem: too small" in err


def test_no_time_is_exit_code_1_with_the_reason(run):
    code, out, _ = run("--config", "block=9")
    assert code == 1
    assert "out_of_memory: vmem: too small" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--family", "decode"), "--family is of a family's candidate"),
        (("--workload", "azure-conv"), "--workload is of a family's candidate"),
        (("--tries", "3"), "--tries is of a family's candidate"),
        (("--shapes", "bf6[8]"), "'bf6' is no dtype"),
        (("--shapes", "s32[8]", "--arguments", "m:f"), "both say"),
        (("--config", "128"), "has an argument without a name"),
        (("--trace-step",), "--trace-step says what --trace writes"),
    ],
)
def test_bad_options_are_usage_errors(run, asked, args, message):
    code, out, err = run(*args)
    assert (code, out, asked) == (2, "", [])
    assert message in err


def test_options_of_functions_need_one(asked, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["explain", "--chip", "v6e", "--shapes", "s32[8]"])
    assert exited.value.code == 2
    assert "--shapes is of a function" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exited:
        main(["explain", "--chip", "v6e", "--family", "decode"])
    assert exited.value.code == 2
    assert "--model" in capsys.readouterr().err
