"""`rpa-tune doctor`: each thing that can be wrong is found, with what to do about it."""

import json
from importlib import metadata

import pytest

from rpa_tune.candidate import Status
from rpa_tune.check import host as module
from rpa_tune.check.host import Check, Health
from rpa_tune.cli import doctor
from rpa_tune.cli.main import main
from rpa_tune.compile import process, target
from rpa_tune.evaluate.understood import Probed
from rpa_tune.llo.unknown import UnknownOpcode


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(module.sys, "version_info", (3, 10, 1))
    check = module.check_python()
    assert check.health is Health.PROBLEM
    assert "3.11" in check.advice


def test_a_machine_that_libtpu_does_not_exist_for(monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: "arm64")
    check = module.check_platform()
    assert check.health is Health.PROBLEM
    assert "arm64" in check.found


def test_a_missing_package(monkeypatch):
    version = metadata.version

    def without_optuna(name):
        if name == "optuna":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(module.metadata, "version", without_optuna)
    check = module.check_packages()
    assert check.health is Health.PROBLEM
    assert check.found == "missing: optuna"
    assert "pip install" in check.advice


@pytest.mark.parametrize(
    ("version", "health"),
    [(None, Health.PROBLEM), ("9.9.9", Health.WARNING), ("0.0.42.1", Health.OK)],
)
def test_libtpu_missing_unknown_and_known(monkeypatch, version, health):
    monkeypatch.setattr(module, "versions", lambda: {"libtpu": version, "jax": "0.10.2"})
    check = module.check_libtpu()
    assert check.health is health
    assert bool(check.advice) == (health is not Health.OK)


def test_jax_and_jaxlib_that_differ(monkeypatch):
    monkeypatch.setattr(module, "versions", lambda: {"jax": "1", "jaxlib": "2"})
    assert module.check_packages().health is Health.WARNING


def test_a_folder_that_is_a_file_is_not_writable(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert module.check_writable("cache", path).health is Health.PROBLEM
    assert module.check_writable("cache", tmp_path / "new" / "folder").health is Health.OK


def test_a_full_disk_and_the_nearest_folder_that_exists(monkeypatch, tmp_path):
    asked = []

    def usage(folder):
        asked.append(folder)
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    check = module.check_disk("disk", tmp_path / "not" / "there")
    assert check.health is Health.PROBLEM
    assert asked == [tmp_path]


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(module, "_available_memory_bytes", lambda: 1 << 30)
    assert module.check_memory().health is Health.WARNING


@pytest.mark.parametrize(
    ("task", "found", "advice"),
    [
        ("no_such_module:f", "No module named 'no_such_module'", "pip install"),
        ("pure.compile.pool_tasks:fail", "ValueError: cannot do v6e", "report"),
        ("pure.compile.pool_tasks:killed_every_time", "SIGKILL", "report"),
    ],
)
def test_a_compile_that_fails(monkeypatch, task, found, advice):
    monkeypatch.setattr(module, "_PROBE", task)
    (check,) = module.check_compiles("v6e")
    assert check.health is Health.PROBLEM
    assert found in check.found
    assert advice in check.advice


# Settings of a shell, and what comes of a compile there: the probe of `pool_tasks`.
SHELLS = {
    "none": ({}, Health.OK, "the same schedule", ""),
    "harmless": ({"JAX_LOG_COMPILES": "1"}, Health.OK, "(JAX_LOG_COMPILES)", ""),
    "other program": (
        {"JAX_OTHER": "1", "JAX_LOG_COMPILES": "1"}, Health.WARNING,
        "a different schedule with JAX_OTHER=1", "compiler's defaults",
    ),
    "breaks": (
        {"LIBTPU_INIT_ARGS": "--break", "JAX_LOG_COMPILES": "1"}, Health.PROBLEM,
        "LIBTPU_INIT_ARGS=--break: ValueError: no such flag", "unset LIBTPU_INIT_ARGS",
    ),
    "aborts": ({"XLA_FLAGS": "--abort"}, Health.PROBLEM, "XLA_FLAGS=--abort: ", "unset XLA_FLAGS"),
}  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_settings_that_change_or_break_a_compile_are_named(monkeypatch, shell):
    settings, health, found, advice = SHELLS[shell]
    for name in target.suspects():
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
    monkeypatch.setattr(module, "_PROBE", "pure.compile.pool_tasks:probe")
    ours, theirs = module.check_compiles("v6e")
    assert ours.health is Health.OK, ours
    assert (theirs.name, theirs.health) == ("compile, your settings", health)
    assert found in theirs.found
    assert advice in theirs.advice
    assert "JAX_LOG_COMPILES" not in theirs.advice


def test_without_a_chip_nothing_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "check_compiles", lambda chip: [BAD])
    assert BAD in list(module.run_checks("v6e", tmp_path))
    others = list(module.run_checks("", tmp_path))
    assert "memory" in {check.name for check in others}
    assert BAD not in others


def run(monkeypatch, capsys, checks, *args):
    monkeypatch.setattr(doctor, "run_checks", lambda chip, cache, only: iter(checks))
    monkeypatch.setattr(doctor, "check_schedules", schedules)
    with pytest.raises(SystemExit) as exited:
        main(["doctor", *args])
    return exited.value.code or 0, capsys.readouterr().out


def schedules(chips, cache):
    """A stand-in: this compiler is understood but for v7x."""
    for chip in chips:
        health = Health.PROBLEM if chip == "v7x" else Health.OK
        yield Check(name=f"schedule, {chip}", health=health, found="", advice="CONTRIBUTING.md")


GOOD = Check(name="python", health=Health.OK, found="3.11")
MEH = Check(name="libtpu", health=Health.WARNING, found="9", advice="watch")
BAD = Check(name="compile", health=Health.PROBLEM, found="it hurts", advice="do not do that")


def test_warnings_do_not_fail_and_problems_do(monkeypatch, capsys):
    code, out = run(monkeypatch, capsys, [GOOD, MEH], "--chip", "v6e")
    assert code == 0
    assert "hint: watch" in out
    assert "no problems found" in out
    code, out = run(monkeypatch, capsys, [GOOD, BAD])
    assert code == 1
    assert "it hurts" in out
    assert "hint: do not do that" in out


def test_json_says_the_same(monkeypatch, capsys):
    code, out = run(monkeypatch, capsys, [GOOD, BAD], "--json")
    answer = json.loads(out)
    assert code == 1
    assert answer["ok"] is False
    assert answer["checks"][1]["advice"] == "do not do that"


def test_every_chip_is_probed_unless_one_is_named_or_nothing_compiles(monkeypatch, capsys):
    code, out = run(monkeypatch, capsys, [GOOD])
    assert code == 1
    assert out.endswith("problems: schedule, v7x\n")
    assert [chip for chip in ("v4", "v5e", "v5p") if f"schedule, {chip}" in out] == [
        "v4", "v5e", "v5p",
    ]  # fmt: skip
    for checks, args in (([BAD], []), ([GOOD], ["--chip", "v5p"])):
        assert "schedule, " not in run(monkeypatch, capsys, checks, *args)[1]


def test_a_schedule_that_is_not_understood_is_a_problem_with_its_opcode(monkeypatch, tmp_path):
    def probe_all(chips, families, pool, cache):
        opcode = UnknownOpcode(mnemonic="smov.u99", count=2, examples=((10, "smov.u99 7"),))
        file = tmp_path / "dump.txt"
        for chip in chips:
            unknown = (opcode,) if chip.name == "v7x" else ()
            status = Status.NOT_UNDERSTOOD if unknown else Status.OK
            yield Probed(
                chip=chip, family="decode", status=status, file=file, unknown=unknown, detail="x"
            )

    monkeypatch.setattr(module, "probe_all", probe_all)
    good, bad = module.check_schedules(["v4", "v7x"], tmp_path)
    assert (good.name, good.health) == ("schedule, v4", Health.OK)
    assert bad.health is Health.PROBLEM
    assert "`smov.u99`" in bad.found
    assert "dump.txt:10" in bad.found
    assert "opcodes.yaml" in bad.advice


def test_an_unknown_chip_is_a_usage_error(monkeypatch, capsys):
    assert run(monkeypatch, capsys, [GOOD], "--chip", "v9")[0] == 2
