"""`rpa-tune chips`: the table, one chip with its sources, and JSON with both."""

import json

import pytest
from click.testing import CliRunner

from rpa_tune.cli.chips import chips
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip, load_chips


def run(*args):
    result = CliRunner().invoke(chips, args)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_chip_has_a_line_in_columns() -> None:
    head, *lines, last = run().splitlines()
    assert [line.split()[0] for line in lines] == list(load_chips())
    assert {len(line) for line in lines} == {len(head)}
    v6e = next(line for line in lines if line.startswith("v6e"))
    rate = f"{load_chip('v6e').bf16_flops_per_s / 1e12:.1f}"
    assert rate in v6e
    assert "128" in v6e
    assert last.endswith("shows every number with its source.")


def test_one_chip_has_every_number_with_confidence_and_source() -> None:
    head, *lines = run("trillium").splitlines()  # another name of it
    assert head.startswith("v6e: ")
    numbers = load_chip("v6e").numbers
    assert [line.split()[0] for line in lines] == list(numbers)
    for line, number in zip(lines, numbers.values(), strict=True):
        assert line.endswith(f"{number.confidence:9} {number.source}")
        assert ("unknown" in line.split()) == (number.value is None)


def test_json_has_the_same() -> None:
    data = json.loads(run("--json"))
    assert list(data) == sorted(load_chips())
    assert data["v6e"]["vmem_bytes"]["value"] == load_chip("v6e").vmem_bytes
    assert set(data["v6e"]["vmem_bytes"]) == {"value", "source", "confidence"}
    assert list(json.loads(run("v4", "--json"))) == ["v4"]


def test_an_unknown_chip_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown chip 'v66'"):
        CliRunner().invoke(chips, ["v66"], catch_exceptions=False)
