"""Rows restamped: which change of sources is proven to leave the schedules, and which is not."""

import json
from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner
from fake_sweep import FakeInterpreter, FormulaEvaluator, make_study, true_us

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.cli import restamp as cli_restamp
from rpa_tune.cli.main import cli
from rpa_tune.decide.promote import decide, make_row
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import kernel_digest, versions
from rpa_tune.store.journal import Journal
from rpa_tune.sweep import recheck
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.restamp import find_obstacle, restamp
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.lint import lint_folder
from rpa_tune.tables.reader import load_tables, read_table
from rpa_tune.tables.row import Clause
from rpa_tune.tables.writer import merge_into

STUDY = make_study()
OLD = "0123456789abcdef"


class Compiler(FormulaEvaluator):
    """Answers by formula; every config has a schedule of its own, and some have changed."""

    def __init__(self, *, changed=(), slower=(), **options):
        super().__init__(Fidelity.SIMULATED, **options)
        self.changed, self.slower = changed, slower

    def answer(self, candidate, num_batches=2):
        known = super().answer(candidate, num_batches)
        config = candidate.config
        if not known.ok:
            return known
        factor = self.slower.get(config, 1) if self.slower else 1
        digest = f"{'new ' if config in self.changed else ''}{config}"
        return replace(
            known,
            time_us=factor * known.time_us,
            batch_us=tuple(factor * us for us in known.batch_us),
            metrics={"bound_by": "hbm", "schedule_digest": digest},
        )


BEST = min(STUDY.space().configs, key=true_us)


@pytest.fixture(autouse=True)
def workload(monkeypatch):
    """The study's batches, whatever a row calls them."""
    monkeypatch.setattr(recheck, "load_workload", lambda name, page_size: STUDY.workload)


def make_stale(folder, *, best=BEST, study=STUDY, **evidence):
    """A row made by a sweep with other sources, read back."""
    candidates = [study.candidate(config) for config in dict.fromkeys((study.heuristic(), best))]
    answers = list(Compiler().evaluate_all(candidates, study.workload))
    row = make_row(decide(answers, answers[0]), answers, study.workload, verified="made up")
    today = {name: versions()[name] for name in ("jax", "libtpu")}
    fields = {"kernel_digest": OLD, **today, **evidence}
    row = replace(row, evidence=replace(row.evidence, **fields))
    merge_into(folder, [row])
    return next(read for read in load_tables([folder]) if read.key == row.key)


def prove(row, tmp_path, compiler=None, interpreter=None, **options):
    evaluators = {
        Fidelity.SIMULATED: compiler or Compiler(),
        Correctness.INTERPRETED: interpreter or FakeInterpreter(),
    }
    with Journal(tmp_path / "restamp.jsonl") as journal:
        oracle = Oracle(evaluators=evaluators, journal=journal, watch=Watch())
        return restamp(row, oracle, **options)


def rules(found):
    return [finding.rule for finding in found.findings]


def test_equal_schedules_give_todays_digest_and_nothing_else(tmp_path):
    row = make_stale(tmp_path / "t")
    assert row.evidence.verdict == "tuned"
    interpreter = FakeInterpreter()
    found = prove(row, tmp_path, interpreter=interpreter)
    assert found.findings == ()
    digest = kernel_digest("decode")
    assert found.new == replace(row, evidence=replace(row.evidence, kernel_digest=digest))
    assert [candidate.config for candidate in interpreter.asked] == [BEST]


def test_a_row_that_pins_the_heuristic_is_restamped(tmp_path):
    row = make_stale(tmp_path / "t", best=STUDY.heuristic())
    assert row.evidence.verdict == "heuristic"
    assert prove(row, tmp_path).new.evidence.kernel_digest == kernel_digest("decode")


def test_a_changed_schedule_is_named_and_the_row_left(tmp_path):
    row = make_stale(tmp_path / "t")
    interpreter = FakeInterpreter()
    found = prove(row, tmp_path, Compiler(changed=[BEST]), interpreter)
    assert (found.new, rules(found)) == (None, ["schedule"])
    assert found.findings[0].message.startswith("configs[0] (bkv_sz=512, bkv_csz=256, ")
    assert "has the schedule changed: " in found.findings[0].message
    assert not interpreter.asked
    # The heuristic's schedule is not part of a tuned row: its time is.
    found = prove(row, tmp_path / "2", Compiler(changed=[STUDY.heuristic()]))
    assert found.new is not None


@pytest.mark.parametrize("changed", [0, 1])
def test_one_changed_schedule_of_several_is_enough(tmp_path, changed):
    row = make_stale(tmp_path / "t")
    configs = (BEST, replace(BEST, seqs_per_step=1))
    answers = [Compiler().answer(STUDY.candidate(config)) for config in configs]
    rule = (Clause(use=1, feature="num_seqs", at_most=2), Clause(use=0))
    two = replace(
        row,
        configs=tuple(asdict(config) for config in configs),
        rule=rule,
        evidence=replace(
            row.evidence,
            workload=f"{row.evidence.workload}, by worst_regret",
            schedule_digest=recheck.digest_of_schedules(answers),
            time_us=sum(answer.time_us for answer in answers) / 2,
        ),
    )
    interpreter = FakeInterpreter()
    assert prove(two, tmp_path, interpreter=interpreter).new is not None
    assert [candidate.config for candidate in interpreter.asked] == list(configs)
    found = prove(two, tmp_path / "2", Compiler(changed=[configs[changed]]))
    assert rules(found) == ["schedule"]
    assert "at least one of 2 configs (the row has one digest for all)" in found.findings[0].message


def test_another_time_of_the_heuristic_is_not_the_one_that_was_beaten(tmp_path):
    row = make_stale(tmp_path / "t")
    for factor, expected in ((1.04, []), (1.06, ["heuristic"]), (0.94, ["heuristic"])):
        slower = Compiler(slower={STUDY.heuristic(): factor})
        assert rules(prove(row, tmp_path / str(factor), slower)) == expected


def test_a_row_rests_on_what_it_was_compared_with_and_not_on_todays_heuristic(
    tmp_path, monkeypatch
):
    row, pinned = make_stale(tmp_path / "t"), make_stale(tmp_path / "p", best=STUDY.heuristic())
    then = STUDY.heuristic()
    assert row.heuristic == pinned.heuristic == config_to_dict(then)
    other = replace(then, num_buffers=then.num_buffers + 1)
    monkeypatch.setattr(type(STUDY), "heuristic", lambda self: other)
    assert prove(pinned, tmp_path / "1").new is not None
    assert prove(row, tmp_path / "2", Compiler(slower={other: 1.06})).new is not None
    slower = Compiler(slower={then: 1.06})
    assert rules(prove(row, tmp_path / "3", slower)) == ["heuristic"]
    # A row that does not say what it was compared with is held against today's.
    silent = replace(row, evidence=replace(row.evidence, heuristic=None))
    assert rules(prove(silent, tmp_path / "4", Compiler(slower={other: 2.0}))) == ["heuristic"]


def test_what_the_row_says_must_follow_from_its_schedules_today(tmp_path):
    """A time that moved with the same schedule: the simulator or the account is another one."""
    row = make_stale(tmp_path / "t")
    assert rules(prove(row, tmp_path, Compiler(scale=1.06))) == ["time"]
    refuse = Compiler(statuses=lambda config: Status.OUT_OF_MEMORY)
    assert rules(prove(row, tmp_path / "2", refuse)) == ["fit"]
    crash = Compiler(statuses=lambda config: Status.CRASHED)
    assert rules(prove(row, tmp_path / "3", crash)) == ["unanswered"]


def test_the_interpreter_may_object(tmp_path):
    row = make_stale(tmp_path / "t")
    for status, rule in ((Status.WRONG_ANSWER, "wrong"), (Status.RUN_TIMEOUT, "unanswered")):
        objecting = FakeInterpreter(statuses=lambda config, status=status: status)
        found = prove(row, tmp_path / rule, interpreter=objecting)
        assert (found.new, rules(found)) == (None, [rule])
        assert found.findings[0].message == f"configs[0] {status}: made up: {status}"
        assert prove(row, tmp_path / rule, interpreter=objecting, verify=False).new is not None


def test_the_row_says_how_it_was_verified_today(tmp_path):
    row = make_stale(tmp_path / "t", verified="with a verifier of old")
    assert prove(row, tmp_path).new.evidence.verified == "made up"
    skipped = prove(row, tmp_path, verify=False)
    assert skipped.new.evidence.verified == "with a verifier of old"
    # Of a row that claims nothing, nothing is asked.
    silent, interpreter = make_stale(tmp_path / "s", verified=""), FakeInterpreter()
    assert prove(silent, tmp_path, interpreter=interpreter).new.evidence.verified == ""
    assert not interpreter.asked


def test_what_needs_no_compiling(tmp_path):
    row = make_stale(tmp_path / "t")
    assert find_obstacle(row) is None
    evidence = row.evidence
    for changes, rule, text in (
        ({"libtpu": "0.0.1"}, "versions", f"libtpu 0.0.1, and {versions()['libtpu']} is installed"),
        ({"jax": "0.1", "libtpu": ""}, "versions", "installed; libtpu ?, and"),
        ({"schedule_digest": ""}, "digest", "sweep again"),
    ):
        found = find_obstacle(replace(row, evidence=replace(evidence, **changes)))
        assert (found.new, rules(found)) == (None, [rule])
        assert text in found.findings[0].message
    for place in ({"chip": "v99"}, {"family": "encode"}):
        found = find_obstacle(replace(row, key=replace(row.key, **place)))
        assert rules(found) == ["remake"]
    current = replace(evidence, kernel_digest=kernel_digest("decode"), libtpu="0.0.1")
    found = find_obstacle(replace(row, evidence=current))
    assert (found.new, found.findings) == (None, ())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with fakes; `run.compiler` is replaced to change what is compiled."""

    def call(*arguments):
        def make_evaluators(workers, cache, verify, libtpu_args):
            call.num_made += 1
            made = {Fidelity.SIMULATED: call.compiler}
            return made | ({Correctness.INTERPRETED: call.interpreter} if verify else {})

        monkeypatch.setattr(cli_restamp, "make_evaluators", make_evaluators)
        store = tmp_path / "store.jsonl"
        command = ["tables", "restamp", str(tmp_path / "t"), "--store", str(store), *arguments]
        return CliRunner().invoke(cli, command)

    call.num_made, call.compiler, call.interpreter = 0, Compiler(), FakeInterpreter()
    return call


def test_the_command_writes_what_it_proved_in_place(tmp_path, run):
    folder = tmp_path / "t"
    fast = make_stale(folder)
    small = replace(STUDY.problem, num_pages=64, max_num_seqs=4)
    make_stale(folder, study=replace(STUDY, problem=small), libtpu="0.0.1")
    make_stale(folder, study=replace(STUDY, chip=load_chip("v5e")))
    before = {path: path.read_text() for path in folder.glob("*/*.jsonl")}

    dry = run("--check", "--chip", "v6e")
    assert dry.exit_code == 3
    assert f"can be restamped: {OLD} -> {kernel_digest('decode')}, 1 config" in dry.stdout
    assert "2 rows: 1 can be restamped, 1 left\n" in dry.stdout
    assert {path: path.read_text() for path in before} == before

    asked = len(run.compiler.asked)
    real = run("--chip", "v6e")
    assert real.exit_code == 3
    assert len(run.compiler.asked) == asked  # the store knows
    assert ": left\n  versions: made with libtpu 0.0.1, and " in real.stdout
    assert "row 1 of 1: v6e" in real.stderr.replace(str(folder) + "/", "")
    changed = [path for path, text in before.items() if path.read_text() != text]
    assert changed == [folder / "v6e" / "decode.jsonl"]
    old_lines, new_lines = before[changed[0]].split("\n"), changed[0].read_text().split("\n")
    differing = [(a, b) for a, b in zip(old_lines, new_lines, strict=True) if a != b]
    assert differing == [
        (line, line.replace(OLD, kernel_digest("decode")))
        for line in old_lines
        if fast.evidence.jax in line and "0.0.1" not in line.split('"libtpu"')[-1] and OLD in line
    ]
    assert len(differing) == 1

    again = json.loads(run("--json").stdout)
    assert again["check"] is False
    assert {(row["chip"], row["outcome"]) for row in again["rows"]} == {
        ("v6e", "current"), ("v6e", "left"), ("v5e", "restamped"),
    }  # fmt: skip
    stale = lint_folder(folder, {"decode": kernel_digest("decode")})
    assert ["v6e" in found.where for found in stale if found.rule == "stale"] == [True]


def test_the_command_ends_with_0_when_nothing_is_stale(tmp_path, run):
    make_stale(tmp_path / "t")
    first = run()
    assert (first.exit_code, "1 row: 1 restamped\n" in first.stdout) == (0, True), first.output
    assert run.num_made == 1
    second = run()
    assert (second.exit_code, "1 row: 1 current\n" in second.stdout) == (0, True)
    assert run.num_made == 1  # nothing to compile, no worker started
    none = run("--family", "mixed")
    assert (none.exit_code, none.stdout) == (0, "no rows: nothing was checked\n")


def test_the_command_skips_the_interpreter_if_told_to(tmp_path, run):
    make_stale(tmp_path / "t")
    run.interpreter = FakeInterpreter(statuses=lambda config: Status.WRONG_ANSWER)
    refused = run()
    assert refused.exit_code == 3
    assert "\n  wrong: configs[0] wrong_answer: made up: wrong_answer\n" in refused.stdout
    assert run("--no-verify").exit_code == 0


def test_a_row_that_another_run_wrote_meanwhile_is_not_overwritten(tmp_path, run):
    row = make_stale(tmp_path / "t")
    newer = replace(row, evidence=replace(row.evidence, time_us=1.0))

    class Busy(Compiler):
        def evaluate_all(self, candidates, workload):
            merge_into(tmp_path / "t", [newer])
            yield from super().evaluate_all(candidates, workload)

    run.compiler = Busy()
    result = run()
    assert result.exit_code == 3
    assert "changed: the table was changed while this ran" in result.stdout
    kept = read_table(tmp_path / "t" / "v6e" / "decode.jsonl")[0]
    assert (kept.evidence.time_us, kept.evidence.kernel_digest) == (1.0, OLD)
