"""`rpa-tune tables`: show, lint, check, diff, merge."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_study, true_us
from table_rows import PROBLEM, default_config, make_row, timed_row

from rpa_tune.analysis import lint_rows, verify
from rpa_tune.candidate import Fidelity, Status
from rpa_tune.cli import recheck as cli_recheck
from rpa_tune.cli.main import cli, main
from rpa_tune.cli.tables import uses_text, verdict_text, verified_text
from rpa_tune.compile import process
from rpa_tune.compile.lint import lint_task
from rpa_tune.decide import promote
from rpa_tune.errors import TableError
from rpa_tune.provenance import kernel_digest
from rpa_tune.sweep import recheck
from rpa_tune.tables.key import beyond_key
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.row import Clause
from rpa_tune.tables.writer import merge_into


@pytest.fixture
def folder(tmp_path):
    merge_into(tmp_path / "t", [make_row(), make_row("mixed"), make_row(chip="v5e")])
    return tmp_path / "t"


def tables(*arguments):
    return CliRunner().invoke(cli, ["tables", *map(str, arguments)])


def test_show_prints_rows_with_evidence(folder):
    result = tables("show", folder)
    assert result.exit_code == 0
    for text in (
        "v6e decode: 8/2 heads of 128",
        "bkv_sz=",
        "1.20x the heuristic",
        "tuned: simulated",
        "made-up",
        "3 rows",
    ):
        assert text in result.stdout, text
    assert "2 rows" in tables("show", folder, "--chip", "v6e").stdout
    assert "1 row" in tables("show", folder, "--family", "mixed").stdout
    rows = json.loads(tables("show", folder, "--json", "--chip", "v5e").stdout)
    assert [row["chip"] for row in rows] == ["v5e"]
    assert rows[0]["evidence"]["workload"] == "made-up"


def test_show_prints_rules(tmp_path):
    rule = (Clause(use=1, feature="mean_context_tokens", at_most=500), Clause(use=0))
    configs = [default_config(), default_config(seqs_per_step=1)]
    merge_into(tmp_path, [make_row(configs=configs, rule=rule)])
    assert "mean_context_tokens <= 500: " in tables("show", tmp_path).stdout


def test_lint_exits_with_3_on_findings(folder):
    assert tables("lint", folder).exit_code == 0
    merge_into(folder, [make_row("mixed", kernel_digest="older")])
    result = tables("lint", folder)
    assert result.exit_code == 3
    assert "mixed.jsonl:2: stale: kernel was older" in result.stdout
    report = json.loads(tables("lint", folder, "--json").stdout)
    assert report["files"] == 3
    assert report["findings"][0]["rule"] == "stale"
    assert isinstance(tables("lint", folder / "none").exception, TableError)


def test_lint_without_a_folder_checks_the_shipped_tables():
    assert tables("lint").exit_code == 0


def test_diff_exits_with_1_when_rows_differ(folder, tmp_path):
    merge_into(tmp_path / "new", [make_row(time_us=40.0), make_row("mixed")])
    assert tables("diff", folder, folder).exit_code == 0
    result = tables("diff", folder, tmp_path / "new")
    assert result.exit_code == 1
    assert "removed v5e decode" in result.stdout
    assert "evidence.time_us: 50.0 -> 40.0" in result.stdout
    kinds = [
        c["kind"] for c in json.loads(tables("diff", folder, tmp_path / "new", "--json").stdout)
    ]
    assert kinds == ["removed", "changed"]


def test_merge_takes_the_later_row(folder, tmp_path):
    merge_into(tmp_path / "new", [make_row(time_us=40.0)])
    result = tables("merge", folder, tmp_path / "new", "--into", tmp_path / "out")
    assert result.exit_code == 0
    assert "3 rows merged, 3 files changed" in result.stdout
    times = {row.key.family + row.key.chip: row.evidence.time_us
             for row in load_tables([tmp_path / "out"])}  # fmt: skip
    assert times == {"decodev6e": 40.0, "mixedv6e": 50.0, "decodev5e": 50.0}


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        (
            "lint_nothing",
            0,
            "1 file, 0 findings; 1 kernel of 1 row linted (dma_race, bounds_check)\n",
        ),
        ("lint_race", 3, "decode.jsonl:2: kernel: configs[0]: dma_race: in decode\n"),
        ("fail", 3, "decode.jsonl:2: kernel: configs[0]: compile_failed: "),
    ],
)
def test_the_compilers_linter_looks_at_the_kernels_of_rows(tmp_path, monkeypatch, task, code, said):
    study, answers = tuned_study()
    row = promote.make_row(promote.decide(answers, answers[0]), answers, study.workload)
    row = replace(row, evidence=replace(row.evidence, kernel_digest=kernel_digest("decode")))
    merge_into(tmp_path, [row])
    monkeypatch.setattr(recheck, "load_workload", lambda name, page_size: study.workload)
    monkeypatch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
    monkeypatch.setattr(lint_rows, "TASK", f"pure.compile.pool_tasks:{task}")
    monkeypatch.setattr(verify, "versions", lambda: {"libtpu": "0.0.52"})
    result = tables("lint", tmp_path, "--kernels")
    assert result.exit_code == code, result.output
    assert said in result.stdout
    assert "configs[0]: " in result.stderr
    (one,) = json.loads(tables("lint", tmp_path, "--kernels", "--json").stdout)["kernels"]
    assert (one["config"], one["status"] == "ok") == (0, code == 0)


def filled_rows(problem, buckets):
    """The rows of a study of decode, which timed the largest bucket."""
    rows = [make_row("decode", replace(problem, max_num_tokens=tokens)) for tokens in buckets]
    timed = replace(problem, max_num_tokens=buckets[-1])
    return [
        replace(row, evidence=replace(row.evidence, problem=beyond_key(timed, row.key)))
        for row in rows
    ]


def test_what_rows_share_is_linted_once(monkeypatch):
    """Rows that one study filled, and one of another chip, flags or config of its own."""
    monkeypatch.setattr(lint_rows, "remake", None)  # needs no workload
    rows = [
        *filled_rows(PROBLEM, (64, 128, 256)),
        timed_row("decode", chip="v5e"),
        timed_row("mixed"),
        timed_row("decode", libtpu_args="--xla_some=true"),
        timed_row("decode", configs=[default_config(), default_config(seqs_per_step=1)]),
    ]
    kernels = lint_rows.kernels_of(rows)
    places = [len(one.places) for one in kernels]
    assert places[0] == 3
    assert sum(places) == len(rows) + 1
    assert len({lint_rows.compile_key(one.candidate) for one in kernels}) == len(kernels)
    flags = {lint_task(one.candidate, Path("c")).candidate.libtpu_args for one in kernels}
    assert len(flags) == 2
    assert all("llo_linter" in text for text in flags)


def test_kernels_of_rows_that_cannot_be_linted_are_said(tmp_path, monkeypatch):
    study, answers = tuned_study()
    row = promote.make_row(promote.decide(answers, answers[0]), answers, study.workload)
    row = replace(row, evidence=replace(row.evidence, problem=None))  # of before rows said it
    merge_into(tmp_path, [row])
    done = tables("lint", tmp_path, "--kernels")
    assert "has no linter" in str(done.exception)
    monkeypatch.setattr(verify, "versions", lambda: {"libtpu": "0.0.52"})
    done = tables("lint", tmp_path, "--kernels")  # its workload is nowhere
    assert done.exit_code == 3
    assert "kernel: configs[0]: compile_failed: workload" in done.stdout


def test_check_compares_versions_unless_told_to_recompile(tmp_path, monkeypatch):
    study, answers = tuned_study()
    row = promote.make_row(promote.decide(answers, answers[0]), answers, study.workload)
    monkeypatch.setattr(recheck, "load_workload", lambda name, page_size: study.workload)
    merge_into(tmp_path, [row])
    result = tables("check", tmp_path)
    assert result.exit_code == 0, result.output
    assert "1 row: no findings" in result.stdout
    merge_into(tmp_path, [replace(row, evidence=replace(row.evidence, jax="0.0.1"))])
    result = tables("check", tmp_path)
    assert result.exit_code == 0
    assert "same libtpu and kernel\n  since: jax 0.0.1 -> " in result.stdout
    assert "1 row: no findings; 1 made with another jax, under the same libtpu" in result.stdout
    older = replace(row, evidence=replace(row.evidence, libtpu="0.0.1"))
    merge_into(tmp_path, [older])
    result = tables("check", tmp_path)
    assert result.exit_code == 3
    assert (
        "versions: made with other versions and not evaluated again\n  since: libtpu 0.0.1 -> "
        in result.stdout
    )


def test_check_recompiles_reports_and_remembers(tmp_path, monkeypatch):
    study, answers = tuned_study()
    row = promote.make_row(promote.decide(answers, answers[0]), answers, study.workload)
    monkeypatch.setattr(recheck, "load_workload", lambda name, page_size: study.workload)
    merge_into(tmp_path, [row])
    asked = []

    def make_evaluator(workers, cache, libtpu_args):
        asked.append(FormulaEvaluator(Fidelity.SIMULATED))
        return asked[-1]

    monkeypatch.setattr(cli_recheck, "make_evaluator", make_evaluator)
    arguments = ("check", tmp_path, "--recompile", "--store", tmp_path / "store.jsonl")
    result = tables(*arguments)
    assert result.exit_code == 0, result.output
    assert "1 row: no findings; 1 without a digest of their schedules" in result.stdout
    assert "row 1 of 1: " in result.stderr
    assert asked[0].closed
    again = tables(*arguments, "--json")
    assert not asked[1].asked
    document = json.loads(again.stdout)["rows"][0]
    assert document["schedule"] == "unknown"
    assert document["time_us"] == pytest.approx(document["time_us_then"], abs=1e-3)
    slow = replace(row, configs=(dict.fromkeys(row.configs[0], 3),))  # no longer possible
    merge_into(tmp_path, [slow])
    monkeypatch.setattr(cli_recheck, "make_evaluator", lambda *_: RefusingEvaluator())
    result = tables(*arguments)
    assert result.exit_code == 3
    assert "fit: configs[0] infeasible: " in result.stdout


def test_rows_of_public_kernels_are_exported_and_never_called_verified():
    config = {"bq_sz": 8, "bkv_sz": 512}
    public = make_row("public-hd64", problem=replace(PROBLEM, head_dim=64), configs=[config])
    ours = make_row(verified="interpreted")
    assert verdict_text(ours) == "tuned, verified"
    assert verdict_text(make_row()) == "tuned, not verified"
    assert verdict_text(public) == "tuned, public kernel"
    assert "verified" not in verified_text(public)
    dispatch, export = "load_dispatcher(", "tables export out --format kwargs"
    for rows, has_dispatch, has_export in (
        ([ours], True, False), ([public], False, True), ([ours, public], True, True),
    ):  # fmt: skip
        text = uses_text(rows, Path("out"))
        assert (dispatch in text, export in text) == (has_dispatch, has_export)


class RefusingEvaluator(FormulaEvaluator):
    """Says that nothing fits."""

    def __init__(self):
        super().__init__(Fidelity.SIMULATED, statuses=lambda config: Status.INFEASIBLE)


def tuned_study():
    """A study, and today's answers to its heuristic and to its best config."""
    study = make_study()
    best = min(study.space().configs, key=true_us)
    configs = [study.heuristic(), best]
    answers = list(
        FormulaEvaluator(Fidelity.SIMULATED).evaluate_all(
            [study.candidate(config) for config in configs], study.workload
        )
    )
    return study, answers


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(folder, tmp_path, capsys):
    target = tmp_path / "missing" / "blocks.json"
    with pytest.raises(SystemExit) as ended:
        main(["tables", "export", str(folder), "--format", "kwargs", "--output", str(target)])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: No such file or directory\n  in {target}\n"


def test_a_row_says_what_it_does_not_rest_on(tmp_path):
    """Padding, other kernels, and how many were tried, beside the figures that they qualify."""
    problem = replace(PROBLEM, num_kv_heads=1, kv_dtype="float8_e4m3fn")
    row = make_row("decode", problem, kernel_digest="an older one", num_candidates=7)
    merge_into(tmp_path, [row])
    text = tables("show", tmp_path, "--chip", "TRILLIUM", "--family", "Decode").stdout
    assert "float8_e4m3fn moves as many bytes as bfloat16 would" in text
    assert "made with other kernels" in text
    assert "regret 0 % of 7 tried" in text
    (shown,) = json.loads(tables("show", tmp_path, "--json").stdout)
    assert shown["is_stale"]
    assert shown["padding"]
    alone = make_row("decode", problem, num_candidates=1, verdict="heuristic")
    assert verdict_text(alone) == "heuristic, no other config had a time, not verified"


def test_nothing_is_no_clean_bill(tmp_path):
    assert "no files: nothing was checked" in tables("lint", tmp_path).stdout
    assert "no rows: nothing was checked" in tables("check", tmp_path).stdout


def test_a_sample_takes_chips_and_families_in_turn_and_is_the_same_everywhere():
    rows = [
        make_row(family, replace(PROBLEM, max_num_seqs=seqs), chip=chip)
        for chip, family, number in (
            ("v6e", "decode", 6),
            ("v6e", "mixed", 2),
            ("v5e", "decode", 1),
        )
        for seqs in (2**i for i in range(number))
    ]
    drawn = cli_recheck.sample_rows(rows, 3)
    assert {(row.key.chip, row.key.family) for row in drawn} == {
        ("v6e", "decode"), ("v6e", "mixed"), ("v5e", "decode"),
    }  # fmt: skip
    assert cli_recheck.sample_rows(rows[::-1], 3) == drawn
    assert set(map(str, drawn)) <= set(map(str, cli_recheck.sample_rows(rows, 5)))
    others = [cli_recheck.sample_rows(rows, 3, seed) for seed in "abcdef"]
    assert any(other != drawn for other in others)
    assert cli_recheck.sample_rows(rows, 99) == sorted(rows, key=lambda row: row.key)


def test_a_sample_has_rows_of_one_study_once_before_it_has_any_twice():
    """Rows of all token buckets are those of the largest, which alone was timed."""
    rows = []
    for heads in (1, 2, 4):
        problem = replace(PROBLEM, num_q_heads=8, num_kv_heads=heads)
        rows += filled_rows(problem, (64, 128, 256, 512))
    for number, most in ((3, 1), (6, 2), (7, 3)):
        drawn = cli_recheck.sample_rows(rows, number)
        heads = Counter(row.key.num_kv_heads for row in drawn)
        assert (len(heads), max(heads.values())) == (3, most)


def test_a_sample_is_what_is_checked(folder):
    for number in (1, 2):
        report = json.loads(tables("check", folder, "--sample", number, "--json").stdout)
        assert len(report["rows"]) == number
