"""What commands say of workloads: what a file was read as, and options instead of YAML keys."""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click
import yaml

from rpa_tune.errors import TraceError
from rpa_tune.workload.spec import load_presets
from rpa_tune.workload.workload import Workload

# Which option of `rpa-tune workloads` sets keys of a section of a workload's mapping.
OPTION_OF_SECTION = {"engine": "--knob", "arrivals": "--arrivals"}


def say_sources(workloads: Iterable[Workload]) -> None:
    """Says on stderr what workloads were made of, unless they are presets; each once."""
    sources = {w.name: w.source for w in workloads if w.name not in load_presets()}
    for name, source in sources.items():
        click.echo(f"workload {name}: {source}", err=True)


@contextmanager
def hints_name_options() -> Iterator[None]:
    """Hints of errors inside name options of `rpa-tune workloads`."""
    try:
        yield
    except TraceError as error:
        error.with_words(lambda setting: f"`{_options(setting)}`")
        raise


@contextmanager
def hints_name_import(workload: str) -> Iterator[None]:
    """Hints of errors inside name the command that makes a stored workload of a file.

    For commands that take a workload's name, and no settings of it.
    """
    try:
        yield
    except TraceError as error:
        command = f"rpa-tune workloads import {shlex.quote(workload)} -o stored.json"
        error.with_words(
            lambda setting: f"`{command} {_options(setting)}` and `--workload stored.json`"
        )
        raise


def _options(setting: str) -> str:
    """`requests: {drop_bad: true}` as `--drop-bad`, and so on."""
    ((section, values),) = yaml.safe_load(setting).items()
    if section == "requests":
        ((key, value),) = values.items()
        option = f"--{key.replace('_', '-')}"
        return option if value is True else f"{option} {value}"
    pairs = ((key, "null" if value is None else value) for key, value in values.items())
    return " ".join(f"{OPTION_OF_SECTION[section]} {key}={value}" for key, value in pairs)
