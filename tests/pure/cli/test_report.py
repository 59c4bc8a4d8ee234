"""`rpa-tune report`: the file that it writes, and its errors."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("altair", reason="the extra `report` is not installed")
pytest.importorskip("vl_convert", reason="the extra `report` is not installed")

from click.testing import CliRunner
from fake_sweep import make_study
from pure.report.stores import write_store

import rpa_tune.report
from rpa_tune.cli.main import cli
from rpa_tune.errors import StoreError, UsageError
from rpa_tune.report import html
from rpa_tune.report.document import make_document
from rpa_tune.report.study import load_studies
from rpa_tune.store.journal import Journal


def report(*arguments):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def test_the_page_is_whole_and_asks_no_network(tmp_path: Path):
    store, page = write_store(tmp_path / "s.jsonl", [make_study()]), tmp_path / "out" / "r.html"
    result = report(store, "-o", page)
    assert result.exit_code == 0, result.output
    assert f"{page}: 1 study, " in result.stderr
    text = page.read_text()
    outside = text.partition("<!--")[0] + text.rpartition("-->")[2]
    assert "http://" not in outside
    assert "https://" not in outside
    assert "{{" not in text.partition('id="library"')[0]
    assert "University of Washington Interactive Data Lab" in text
    found = html.read_document(text)
    assert found["schema"] == "rpa-report/1"
    assert found["studies"][0]["label"] == "v6e/fake/decode"
    again = tmp_path / "again.html"
    report(store, "-o", again, "--title", found["title"])
    assert again.read_bytes() == page.read_bytes()
    assert json.loads(json.dumps(found)) == json.loads(
        json.dumps(make_document(load_studies(store), title=found["title"]))
    )


def test_a_folder_without_a_name_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    error = report(Path(".")).exception
    assert isinstance(error, StoreError)
    assert "no such store" in str(error)


def test_what_is_no_store_is_an_error(tmp_path: Path):
    (tmp_path / "x").write_text("rubbish\n")
    for name in ("none", "x"):
        assert isinstance(report(tmp_path / name).exception, StoreError)
    with Journal(tmp_path / "empty.jsonl"):
        pass
    error = report(tmp_path / "empty.jsonl").exception
    assert isinstance(error, UsageError)
    assert "nothing to report" in str(error)


def test_a_missing_library_is_named_with_how_to_install_it(tmp_path: Path, monkeypatch):
    store = write_store(tmp_path / "s.jsonl", [make_study()])
    for name in ("document", "charts"):
        monkeypatch.delitem(sys.modules, f"rpa_tune.report.{name}")
        monkeypatch.delattr(rpa_tune.report, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    error = report(store, "-o", tmp_path / "r.html").exception
    assert isinstance(error, UsageError)
    assert "altair" in str(error)
    assert "[report]" in error.hint
