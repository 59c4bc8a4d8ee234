"""Rows, files, lint: what is written is read back, and what is wrong is found."""

import json
from dataclasses import replace

import pytest
from table_rows import PROBLEM, default_config, make_row

from rpa_kernels import FAMILIES
from rpa_tune import files
from rpa_tune.errors import TableError
from rpa_tune.provenance import kernel_digest
from rpa_tune.tables import reader
from rpa_tune.tables.changes import diff_tables
from rpa_tune.tables.lint import lint_file, lint_folder
from rpa_tune.tables.reader import Tables, load_tables, read_table, shipped_folder
from rpa_tune.tables.row import Clause
from rpa_tune.tables.step import Lengths, Step
from rpa_tune.tables.writer import merge_into

DIGESTS = {name: kernel_digest(name) for name in FAMILIES}
BIGGER = replace(PROBLEM, max_num_seqs=64)
TWO = (
    default_config(),
    default_config(seqs_per_step=1),
)
RULE = (Clause(use=1, feature="longest_context_tokens", at_most=64), Clause(use=0))


def rows_of(tables):
    return [replace(row, where="") for row in tables]


def test_written_rows_are_read_back_sorted(tmp_path):
    rows = [make_row(problem=BIGGER), make_row(configs=TWO, rule=RULE), make_row("mixed")]
    changed = merge_into(tmp_path, rows)
    assert changed == [tmp_path / "v6e/decode.jsonl", tmp_path / "v6e/mixed.jsonl"]
    loaded = load_tables([tmp_path])
    assert rows_of(loaded) == sorted(rows, key=lambda row: row.key)
    assert [row.where.rsplit("/", 1)[1] for row in loaded] == [
        "decode.jsonl:2", "decode.jsonl:3", "mixed.jsonl:2",
    ]  # fmt: skip
    assert not lint_folder(tmp_path, DIGESTS)


def test_one_row_a_line_and_merging_replaces_by_key(tmp_path):
    merge_into(tmp_path, [make_row(), make_row(problem=BIGGER)])
    before = (tmp_path / "v6e/decode.jsonl").read_text().splitlines()
    assert len(before) == 3
    assert merge_into(tmp_path, [make_row()]) == []
    merge_into(tmp_path, [make_row(time_us=40.0)])
    after = (tmp_path / "v6e/decode.jsonl").read_text().splitlines()
    assert [a == b for a, b in zip(before, after, strict=True)].count(False) == 1


def test_order_of_writing_does_not_show(tmp_path):
    rows = [make_row(), make_row(problem=BIGGER), make_row(problem=replace(PROBLEM, head_dim=256))]
    merge_into(tmp_path / "a", rows)
    for row in reversed(rows):
        merge_into(tmp_path / "b", [row])
    name = "v6e/decode.jsonl"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_later_folders_win(tmp_path):
    merge_into(tmp_path / "shipped", [make_row()])
    merge_into(tmp_path / "mine", [make_row(time_us=40.0)])
    loaded = load_tables([tmp_path / "shipped", tmp_path / "mine"])
    assert [row.evidence.time_us for row in loaded] == [40.0]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    merge_into(tmp_path, [make_row()])
    before = (tmp_path / "v6e/decode.jsonl").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TableError, match="No space left on device"):
        merge_into(tmp_path, [make_row(time_us=40.0)])
    assert [p.name for p in (tmp_path / "v6e").iterdir()] == ["decode.jsonl"]
    assert (tmp_path / "v6e/decode.jsonl").read_bytes() == before


def edit(path, change):
    header, line = path.read_text().splitlines()
    data = json.loads(line)
    change(data)
    path.write_text(f"{header}\n{json.dumps(data, separators=(',', ':'))}\n")


BREAKS = {
    "missing ['head_dim']": lambda d: d["key"].pop("head_dim"),
    "unknown ['colour']": lambda d: d["key"].update(colour=1),
    "key.page_size='16'": lambda d: d["key"].update(page_size="16"),
    "key.causal=1": lambda d: d["key"].update(causal=1),
    "configs must be a list": lambda d: d.update(configs=[]),
    "configs[0].bkv_sz=1.5": lambda d: d["configs"][0].update(bkv_sz=1.5),
    "rule[0].use=7": lambda d: d["rule"][0].update(use=7),
    "rule must be": lambda d: d.update(rule=[]),
    "key.page_size=0 is not in": lambda d: d["key"].update(page_size=0),
    "key.num_q_heads=-8 is not in": lambda d: d["key"].update(num_q_heads=-8),
    "configs[0].bkv_sz=-1 is not in": lambda d: d["configs"][0].update(bkv_sz=-1),
    "configs[0].bkv_sz=4294967296": lambda d: d["configs"][0].update(bkv_sz=2**32),
    "rule must be a list of 1": lambda d: d.update(rule=d["rule"] * 33),
    "evidence.time_us=inf": lambda d: d["evidence"].update(time_us=float("inf")),
    "evidence.heuristic_us=0": lambda d: d["evidence"].update(heuristic_us=0),
    "evidence.error_pct=1000": lambda d: d["evidence"].update(error_pct=10**400),
    "evidence.regret_by_num_configs_pct must": lambda d: d["evidence"].update(
        regret_by_num_configs_pct={"1": 0}
    ),
    "evidence.regret_by_num_configs_pct[1]='0'": lambda d: d["evidence"].update(
        regret_by_num_configs_pct=[1, "0"]
    ),
    "evidence.verdict='great'": lambda d: d["evidence"].update(verdict="great"),
    "evidence.interval_us=7": lambda d: d["evidence"].update(interval_us=7),
    "evidence.interval_us=[1.0]": lambda d: d["evidence"].update(interval_us=[1.0]),
    "evidence.interval_us=[2.0, 1.0]": lambda d: d["evidence"].update(interval_us=[2.0, 1.0]),
    "evidence.interval_us=[0.0, 1.0]": lambda d: d["evidence"].update(interval_us=[0.0, 1.0]),
    "evidence.interval_us=nan": lambda d: d["evidence"].update(interval_us=[1.0, float("nan")]),
    "evidence.share_of_wins='all'": lambda d: d["evidence"].update(share_of_wins="all"),
    "evidence.share_of_wins=7 must be at most 1": lambda d: d["evidence"].update(share_of_wins=7),
    # A tuned row must beat the heuristic by this error: below zero, lint would ask for nothing.
    "evidence.error_pct=-5 must be": lambda d: d["evidence"].update(error_pct=-5),
    "evidence.regret_pct=-0.1 must be": lambda d: d["evidence"].update(regret_pct=-0.1),
    "evidence.regret_by_num_configs_pct[0]=-1": lambda d: d["evidence"].update(
        regret_by_num_configs_pct=[-1]
    ),
    "evidence.num_candidates=-4 must be": lambda d: d["evidence"].update(num_candidates=-4),
    "evidence.date='2026-13-01'": lambda d: d["evidence"].update(date="2026-13-01"),
    "evidence.date='tomorrow'": lambda d: d["evidence"].update(date="tomorrow"),
    "evidence.runners_up[0].time_us=0 must be above": lambda d: d["evidence"].update(
        runners_up=[{"config": d["configs"][0], "time_us": 0}]
    ),
    "evidence.other_versions must be a list": lambda d: d["evidence"].update(other_versions=7),
    "evidence.other_versions[0].libtpu='new' is no": lambda d: d["evidence"].update(
        other_versions=[{"jax": "0.12", "libtpu": "new", "time_us": 1.0, "found": "best"}]
    ),
    "evidence.other_versions[0].found='good'": lambda d: d["evidence"].update(
        other_versions=[{"jax": "0.12", "libtpu": "0.1", "time_us": 1.0, "found": "good"}]
    ),
    "evidence.other_versions[0].time_us=None with best": lambda d: d["evidence"].update(
        other_versions=[{"jax": "0.12", "libtpu": "0.1", "time_us": None, "found": "best"}]
    ),
    "evidence.time_us=-1": lambda d: d["evidence"].update(time_us=-1),
    "evidence.time_us=nan": lambda d: d["evidence"].update(time_us=float("nan")),
    "evidence.fidelity='guessed'": lambda d: d["evidence"].update(fidelity="guessed"),
    "evidence: missing ['libtpu']": lambda d: d["evidence"].pop("libtpu"),
    "row: missing ['rule']": lambda d: d.pop("rule"),
}


@pytest.mark.parametrize("message", BREAKS)
def test_a_row_that_does_not_parse_names_file_line_and_field(tmp_path, message):
    merge_into(tmp_path, [make_row()])
    path = tmp_path / "v6e/decode.jsonl"
    edit(path, BREAKS[message])
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert message in caught.value.args[0]
    assert caught.value.where == f"{path}:2"
    assert [finding.rule for finding in lint_file(path, DIGESTS)] == ["parse"]


def test_files_that_are_no_tables(tmp_path):
    path = tmp_path / "v6e" / "decode.jsonl"
    path.parent.mkdir()
    for text, message in [
        ("", "not JSON"),
        ("[1]\n", "not a JSON object"),
        ('{"schema":"rpa-table/9"}\n', "rpa-table/9"),
        ('{"schema":"rpa-table/1","chip":"v5e","family":"decode"}\n', "but the path says"),
        ('{"schema":"rpa-table/1","chip":"v6e","family":"decode"}\n{"key":\n', "not JSON"),
        ("[" * 257, "more than 256 brackets"),
        ("[" * 200, "not JSON"),
        (" " * 70_000, "more than 65,536 bytes"),
        ("{}" + "\n" * 100_002, "more than 100,000 rows"),
    ]:
        path.write_text(text)
        with pytest.raises(TableError) as caught:
            read_table(path)
        assert message in caught.value.args[0]
    with pytest.raises(TableError, match="no such table folder"):
        load_tables([tmp_path / "none"])


def test_a_file_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    merge_into(tmp_path, [make_row()])
    path = tmp_path / "v6e/decode.jsonl"
    monkeypatch.setattr(reader, "MAX_FILE_BYTES", path.stat().st_size)
    assert len(read_table(path)) == 1
    monkeypatch.setattr(reader, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(TableError, match="larger than"):
        read_table(path)


def test_a_key_twice_is_refused(tmp_path):
    merge_into(tmp_path, [make_row()])
    path = tmp_path / "v6e/decode.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(TableError, match="same key"):
        read_table(path)


LINTS = {
    "reach": lambda d: d["key"].update(max_num_tokens=33),
    "fit": lambda d: d["configs"][0].update(num_buffers=1),
    "config": lambda d: d["configs"][0].update(bq_size=1),
    "stale": lambda d: d["evidence"].update(kernel_digest="0" * 16),
    "evidence": lambda d: d["evidence"].update(time_us=59.0),
    "evidence  ": lambda d: d["evidence"].update(heuristic_us=None),
    "evidence ": lambda d: d["evidence"].update(problem={"head_dim": 256}),
    "dead_config": lambda d: d["configs"].append(d["configs"][0]),
}


@pytest.mark.parametrize("rule", LINTS)
def test_lint_finds(tmp_path, rule):
    merge_into(tmp_path, [make_row()])
    path = tmp_path / "v6e/decode.jsonl"
    edit(path, LINTS[rule])
    assert [finding.rule for finding in lint_file(path, DIGESTS)] == [rule.strip()]


def test_lint_finds_unknown_chips_families_and_unsorted_rows(tmp_path):
    row = make_row()
    for chip, family, rule in [("v99", "decode", "chip"), ("v6e", "encode", "family")]:
        merge_into(tmp_path / rule, [replace(row, key=replace(row.key, chip=chip, family=family))])
        assert [finding.rule for finding in lint_folder(tmp_path / rule, DIGESTS)] == [rule]
    merge_into(tmp_path / "order", [row, make_row(problem=BIGGER)])
    path = tmp_path / "order/v6e/decode.jsonl"
    header, first, second = path.read_text().splitlines()
    path.write_text(f"{header}\n{second}\n{first}\n")
    assert [finding.rule for finding in lint_file(path, DIGESTS)] == ["canonical"]


def test_a_clause_that_is_never_reached_is_found(tmp_path):
    again = replace(RULE[0], at_most=32)
    merge_into(tmp_path, [make_row(configs=TWO, rule=(RULE[0], again, RULE[1]))])
    found = lint_folder(tmp_path, DIGESTS)
    assert [finding.rule for finding in found] == ["dead_config"]
    assert "rule[1]" in found[0].message


def test_rules_pick_by_lengths():
    row = make_row(configs=TWO, rule=RULE)
    assert row.pick(Lengths.of([1, 1], [10, 64])) == 1
    assert row.pick(Lengths.of([1, 1], [10, 65])) == 0


def test_steps_are_told_apart_by_family():
    step = Step.of([1, 1, 4, 9], [5, 7, 4, 90], [2, 3, 4])
    assert step.decode == Lengths.of([1, 1], [5, 7])
    assert (step.decode.mean_context_tokens, step.decode.longest_context_tokens) == (6, 7)
    assert (step.prefill.num_tokens, step.mixed.num_tokens) == (4, 9)
    assert step.decode + step.mixed == Lengths.of([1, 1, 9], [5, 7, 90])
    assert Step().decode.mean_context_tokens == 0
    for bad in ([3, 2, 4], [0, 0, 5], [-1, 0, 0]):
        with pytest.raises(ValueError, match="must rise"):
            Step.of([1] * 4, [1] * 4, bad)


def test_changes_between_tables():
    old = Tables([make_row(), make_row(problem=BIGGER)])
    new = Tables([make_row(configs=[TWO[1]]), make_row("mixed")])
    changes = {change.key.family + change.kind: change for change in diff_tables(old, new)}
    assert set(changes) == {"decodechanged", "decoderemoved", "mixedadded"}
    assert set(changes["decodechanged"].fields) == {"configs.0.seqs_per_step"}
    assert "configs.0.seqs_per_step: " in str(changes["decodechanged"])
    assert not diff_tables(old, old)


def test_shipped_tables_are_clean():
    assert [str(finding) for finding in lint_folder(shipped_folder(), DIGESTS)] == []


def test_rows_are_read_when_they_are_asked_for(tmp_path):
    """A look-up reads its row alone, in files as the writer makes them, and finds the same."""
    rows = [make_row(problem=replace(PROBLEM, max_num_seqs=n)) for n in (8, 16, 32)]
    rows.append(
        make_row(
            problem=replace(PROBLEM, page_size=128, return_lse=True, kv_layout="seq_along_lane")
        )
    )
    (path,) = merge_into(tmp_path, rows)
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if '"max_num_seqs":32' in line)
    lines[place] = lines[place].replace('"rule":', '"rules":')
    path.write_text("\n".join(lines) + "\n")
    loaded = load_tables([tmp_path])
    assert len(loaded) == 4
    for row in (rows[0], rows[1], rows[3]):
        assert replace(loaded.exact(row.key), where="") == row
    near = loaded.by_distance(rows[0].key)
    assert [next(near).row.key for _ in range(2)] == [rows[0].key, rows[1].key]
    for ask in (lambda: loaded.exact(rows[2].key), lambda: list(loaded), lambda: list(near)):
        with pytest.raises(TableError, match="rules") as caught:
            ask()
        assert caught.value.where == f"{path}:{place + 1}"


def test_a_key_that_is_written_otherwise_is_found_all_the_same(tmp_path):
    """Text is compared only where it is the writer's: names in order, nothing usual said."""
    row = make_row()
    (path,) = merge_into(tmp_path, [row])
    header, line = path.read_text().splitlines()
    data = json.loads(line)
    usual = {**data["key"], "rope_dim": 0}
    turned = dict(reversed(data["key"].items()))
    for key in (usual, turned):
        odd = json.dumps({**data, "key": key}, separators=(",", ":"))
        path.write_text(f"{header}\n{odd}\n")
        assert replace(load_tables([tmp_path]).exact(row.key), where="") == row
    twice = line[:-1] + ',"key":' + json.dumps({**data["key"], "page_size": 32}) + "}"
    path.write_text(f"{header}\n{twice}\n")
    with pytest.raises(TableError, match="two keys"):
        load_tables([tmp_path]).exact(row.key)
