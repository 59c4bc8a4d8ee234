"""Old table files stay readable: one of every schema that was ever shipped is kept and read."""

import json
import shutil
from pathlib import Path

import pytest

from rpa_tune.errors import TableError
from rpa_tune.tables import migrate
from rpa_tune.tables.reader import load_tables, read_table
from rpa_tune.tables.row import SCHEMA, row_from_dict
from rpa_tune.tables.writer import merge_into

FIXTURES = Path(__file__).parents[2] / "golden" / "tables"


def fixture(schema):
    return FIXTURES / schema.replace("/", "-")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_leads_to_the_newest_schema():
    for schema in migrate.STEPS:
        seen = [schema]
        while seen[-1] != SCHEMA:
            seen.append(migrate.STEPS[seen[-1]].into)
            assert len(seen) <= len(migrate.STEPS) + 1


@pytest.mark.parametrize("schema", migrate.STEPS)
def test_a_file_of_an_old_schema_is_read_and_written_as_the_newest(schema, tmp_path):
    folder = fixture(schema)
    files = sorted(folder.glob("*/*.jsonl"))
    assert files, f"no file of {schema} was kept"
    for path in files:
        header, *old = lines(path)
        assert header["schema"] == schema
        rows = read_table(path)
        assert len(rows) == len(old) > 0
        merge_into(tmp_path, rows)
        written = tmp_path / path.parent.name / path.name
        header, *new = lines(written)
        assert header["schema"] == SCHEMA
        # Nothing that was said is lost or changed; what is new says that it is not known.
        for before, after in zip(old, new, strict=True):
            assert {k: after[k] for k in before if k != "evidence"} == {
                k: before[k] for k in before if k != "evidence"
            }
            added = after["evidence"].keys() - before["evidence"].keys()
            assert (
                before["evidence"].items()
                <= {k: v for k, v in after["evidence"].items() if k not in added}.items()
            )
            assert not any(after["evidence"][name] for name in added)
        assert read_table(written) == [*load_tables([tmp_path], chip=path.parent.name)]


def test_old_and_new_files_mix(tmp_path):
    old = fixture("rpa-table/1")
    shutil.copytree(old, tmp_path / "mine")
    changed = merge_into(tmp_path / "mine", read_table(old / "v6e/decode.jsonl"))
    assert [path.name for path in changed] == ["decode.jsonl"]
    loaded = load_tables([old, tmp_path / "mine"])
    assert len(loaded) == len(load_tables([old]))
    assert merge_into(tmp_path / "mine", read_table(old / "v6e/decode.jsonl")) == []


def test_a_row_of_the_newest_schema_is_left_alone():
    row = {"evidence": {"whatever": 1}}
    assert migrate.migrate(row, SCHEMA) is row


@pytest.mark.parametrize("row", [{}, {"evidence": 3}, {"evidence": None}])
def test_what_was_no_row_then_is_none_now(row):
    with pytest.raises(ValueError, match="not a row of rpa-table/1"):
        migrate.migrate(row, "rpa-table/1")


def test_a_damaged_old_file_names_its_line(tmp_path):
    (tmp_path / "v6e").mkdir()
    path = tmp_path / "v6e" / "decode.jsonl"
    text = (fixture("rpa-table/1") / "v6e/decode.jsonl").read_text()
    path.write_text(text.replace('"evidence":', '"evident":'))
    with pytest.raises(TableError, match="not a row of rpa-table/1") as caught:
        read_table(path)
    assert caught.value.where == f"{path}:2"


def test_rows_of_the_newest_schema_need_its_fields():
    header, row = lines(fixture("rpa-table/1") / "v6e/decode.jsonl")
    with pytest.raises(ValueError, match="regret_by_num_configs_pct"):
        row_from_dict(row, chip=header["chip"], family=header["family"])
