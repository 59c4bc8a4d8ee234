"""Versions as releases order them, the range of a fault, and which jax goes with which libtpu."""

import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_sweep import make_study

from rpa_tune import known_versions
from rpa_tune.check import host
from rpa_tune.cli import sweep
from rpa_tune.known_versions import faults, pair_advice, supported_pairs, version_number
from rpa_tune.tables.reader import Tables


def test_versions_compare_as_numbers_whatever_stands_behind_them():
    ordered = ["0.0.9", "0.0.42", "0.0.42.1", "0.0.43.dev20261101", "0.0.52", "0.12.0.1"]
    assert sorted(sorted(ordered, reverse=True), key=version_number) == ordered
    with pytest.raises(ValueError, match="begin with a number"):
        version_number("nightly")


@pytest.mark.parametrize(
    ("libtpu", "is_bad"),
    [("0.0.42.1", False), ("0.0.43", True), ("0.0.44", True), ("0.0.45", True),
     ("0.0.45.2", False), ("0.0.46", False)],
)  # fmt: skip
def test_the_range_of_a_fault_has_both_its_ends(libtpu, is_bad):
    found = faults({"jax": "0.11.0", "libtpu": libtpu})
    assert [fault.source for fault in found] == (
        ["https://github.com/jax-ml/jax/issues/39744"] if is_bad else []
    )


def test_a_fault_of_one_chip_is_none_of_another_and_every_one_has_a_source():
    newest = {"jax": "0.12.0.1", "libtpu": "0.0.52"}
    (fault,) = faults(newest, "v7x")
    assert "40553" in fault.source
    assert "--xla_tpu_offload_gather_to_sparsecore=false" in fault.cure
    assert fault.text("0.12.0.1").startswith("jax 0.12.0.1 on v7x: gathers ")
    assert faults(newest, "v6e") == []
    assert faults(newest) == [fault]
    assert faults({"jax": None}) == []
    for entry in known_versions._lists()["known_bad"]:
        assert re.fullmatch(r"https://github\.com/\S+/issues/\d+", entry["source"])


def test_a_pair_that_is_not_tested_gets_what_jax_asks_for_and_the_supported_pairs(monkeypatch):
    for pair in supported_pairs():
        assert pair_advice({"jax": pair.jax, "libtpu": pair.libtpu}) == ""
    required = ["numpy>=2", 'libtpu==0.0.50.*; extra == "tpu"']
    monkeypatch.setattr(known_versions.metadata, "requires", lambda name: required)
    said = pair_advice({"jax": "0.12.0.1", "libtpu": "0.0.47"})
    assert said.startswith("jax 0.12.0.1 itself asks for libtpu 0.0.50.*; tested are jax 0.10.2 ")
    assert "jax 0.11.2 with libtpu 0.0.48" in said


ROOT = Path(__file__).parents[2]
IMPORT = """
import logging, sys
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
from rpa_tune import provenance
provenance.versions = lambda: {"jax": "0.11.0", "libtpu": "0.0.44"}
import rpa_tune.dispatch
"""


def test_importing_the_dispatcher_says_what_is_wrong_with_this_libtpu():
    run = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (line,) = run
    assert line.startswith("rpa_tune.dispatch WARNING libtpu 0.0.44: a DMA can read zeros")
    assert "39744" in line
    assert "cure: use libtpu 0.0.42.1, or 0.0.46" in line


def test_a_dispatcher_says_what_is_wrong_on_its_chip_alone(monkeypatch, caplog):
    from rpa_tune.dispatch import dispatcher

    monkeypatch.setattr(dispatcher, "versions", lambda: {"jax": "0.12.0.1", "libtpu": "0.0.52"})
    with caplog.at_level(logging.WARNING, logger="rpa_tune.dispatch"):
        dispatcher.load_dispatcher("v6e", Tables())
        assert not caplog.records
        dispatcher.load_dispatcher("v7x", Tables())
    assert "40553" in caplog.text


def test_doctor_and_a_sweep_name_the_fault_with_its_cure(monkeypatch, capsys):
    bad = {"jax": "0.11.1", "libtpu": "0.0.44"}
    monkeypatch.setattr(host, "versions", lambda: bad)
    checks = list(host.check_faults())
    assert [check.health for check in checks] == [host.Health.WARNING] * 2
    assert "39744" in checks[0].found
    assert "0.0.46" in checks[0].advice
    assert list(host.check_faults("v6e")) == checks[:1]  # the other is of v7x
    monkeypatch.setattr(sweep, "versions", lambda: bad)
    job = SimpleNamespace(studies=[make_study(), make_study(chip="v5e")])
    sweep._say_faults(job)
    said = capsys.readouterr().err
    assert said.count("known fault: ") == 1  # once for both chips, and nothing of v7x
    assert "39744" in said
    assert "hint: use libtpu 0.0.42.1" in said


def test_the_page_of_versions_has_every_pair_and_every_fault():
    page = (ROOT / "docs" / "versions.md").read_text()
    for pair in supported_pairs():
        assert f"| {pair.python} | {pair.jax} | {pair.libtpu} | {pair.why}" in page
    for entry in known_versions._lists()["known_bad"]:
        assert entry["source"] in page
    bound = (ROOT / "pyproject.toml").read_text().partition('"jax>=0.10.2,<')[2].partition('"')[0]
    newest = max(version_number(pair.jax) for pair in supported_pairs())
    assert newest < version_number(bound)
