"""Documents that cannot rot: every command, plan, file and link that they name exists."""

import re
from pathlib import Path

import click
import pytest
import yaml

from rpa_tune.cli.main import COMMANDS, LazyGroup, cli

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"),
     *ROOT.glob("rpa_tune/*/README.md"), *ROOT.glob("benchmarks/*.md")]
)  # fmt: skip


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands() -> dict[str, click.Command]:
    """Every command by the words a person types, groups' members included."""
    context = click.Context(cli)
    found = {}
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group) and not isinstance(command, LazyGroup):
            found |= {f"{name} {sub}": child for sub, child in command.commands.items()}
    return found


def test_the_readme_names_every_command():
    text = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_with_an_example(name):
    command = commands()[name]
    assert command.help
    if not isinstance(command, click.Group):
        assert "Example:" in command.help
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name}"


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_can_be_printed(name):
    command = commands()[name]
    text = command.get_help(click.Context(command, info_name=name))
    for option in command.params:
        assert isinstance(option, click.Argument) or option.opts[0] in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{relative(path)}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_in_documents_exist(path):
    known = set(COMMANDS)
    for name in re.findall(
        r"(?:^|`)rpa-tune ([a-z]+(?:-[a-z]+)*)\b", path.read_text(), re.MULTILINE
    ):
        assert name in known, f"{relative(path)}: rpa-tune {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_make_targets_in_documents_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"^make ([a-z-]+)", path.read_text(), re.MULTILINE):
        assert name in targets, f"{relative(path)}: make {name}"


def test_every_plan_says_what_it_is_about():
    plans = sorted(ROOT.glob("sweeps/*.yaml"))
    assert plans
    for path in plans:
        assert yaml.safe_load(path.read_text())["about"], relative(path)


def test_the_project_speaks_of_the_project_alone():
    private = re.compile(r"/work/|/root/|/home/\w+/")
    for path in [*DOCUMENTS, *ROOT.glob("rpa_tune/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        found = private.search(path.read_text())
        assert not found, f"{relative(path)}: {found}"
