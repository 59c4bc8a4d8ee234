"""Every Python example of docs/python.md is run, and prints what stands below it.

`documented.py` has the rule by which output is compared. Examples that compile or interpret
are slow; by default they get made-up answers, so that their names and types are tested.
"""

import re

import pytest
from documented import ROOT, difference
from fake_sweep import FormulaEvaluator, answer_of_any_family, make_evaluators

from rpa_tune.evaluate import correctness, simulated
from rpa_tune.sweep import run

TEXT = (ROOT / "docs" / "python.md").read_text()
_EXAMPLE = re.compile(r"^## (\w+)$|^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.M | re.S)


def examples():
    """Name -> (program, output). The name is that of the section, with a number from the second."""
    found, section = {}, ""
    for match in _EXAMPLE.finditer(TEXT):
        if match[1]:
            section = match[1].lower()
        else:
            count = sum(name.split()[0] == section for name in found)
            found[f"{section} {count + 1}"] = (match[2], match[3])
    return found


EXAMPLES = examples()
LONG = {"tune 1", "explain 1", "verify 1"}


def run_example(name, capsys):
    program, output = EXAMPLES[name]
    exec(compile(program, f"docs/python.md: {name}", "exec"), {})
    printed = capsys.readouterr()
    assert printed.err == ""
    return output, printed.out.splitlines()


def test_every_function_has_an_example_with_its_output():
    assert {name.split()[0] for name in EXAMPLES} == {
        "tune", "explain", "verify", "audit", "advise", "plan",
    }  # fmt: skip
    assert set(EXAMPLES) >= LONG
    assert all(output for _, output in EXAMPLES.values())


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=(pytest.mark.slow, pytest.mark.aot) if n in LONG else ())
     for n in EXAMPLES],
)  # fmt: skip
def test_examples_print_what_the_page_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output, real = run_example(name, capsys)
    found = difference(tuple(output.splitlines()), real)
    assert not found, f"{name}: {found}\n\n" + "\n".join(real)


@pytest.mark.parametrize("name", sorted(LONG))
def test_long_examples_run_with_made_up_answers(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "make_evaluators", lambda *_: make_evaluators())
    monkeypatch.setattr(run, "has_tpu", lambda: False)
    monkeypatch.setattr(run, "shipped_folder", lambda: tmp_path / "shipped")
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate_by_bytes")
    monkeypatch.setattr(correctness, "TASK", "pure.compile.pool_tasks:check_right")
    monkeypatch.setattr(FormulaEvaluator, "answer", answer_of_any_family)
    output, real = run_example(name, capsys)
    assert len(real) == len(output.splitlines())
