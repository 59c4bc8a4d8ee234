"""What `explain` says while a person waits: lines in a log, one line with a clock on a terminal."""

import io

from rich.console import Console

from rpa_tune.cli import phases


def say(monkeypatch, what, *, is_terminal):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=is_terminal, width=100)
    monkeypatch.setattr(phases, "Console", lambda stderr: console)
    with phases.phases_on_stderr(what) as on_phase:
        for phase in ("lower", "compile", "another [phase]"):
            on_phase(phase)
            console.file.flush()
    return shown.getvalue()


def test_a_log_has_a_line_for_each_phase(monkeypatch):
    lines = say(monkeypatch, "", is_terminal=False).splitlines()
    said = [line.split(" s] ")[1] for line in lines]
    assert said == [
        "starting a worker process", "tracing the kernel", "compiling", "another [phase]",
    ]  # fmt: skip


def test_a_terminal_has_one_line_with_a_clock_which_is_taken_away(monkeypatch):
    shown = say(monkeypatch, "B", is_terminal=True)
    assert "B: another [phase] " in shown  # the last is drawn before it is taken away
    assert shown.rstrip("\n").endswith("\x1b[2K")  # the line is erased
