"""Rows asked again: what is the same, what has changed, and what cannot be asked."""

from dataclasses import replace

import pytest
from fake_sweep import FormulaEvaluator, true_us

from rpa_kernels.batch import Batch
from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.decide.objective import EXPECTED_TIME, WORST_REGRET
from rpa_tune.decide.promote import decide, make_row
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.catalog import load_model, problem_for
from rpa_tune.provenance import kernel_digest, versions
from rpa_tune.store.journal import Journal
from rpa_tune.sweep import recheck
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.recheck import ask, check_versions, compare, remake
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.reader import read_table
from rpa_tune.tables.row import Clause, row_from_dict
from rpa_tune.tables.writer import merge_into
from rpa_tune.workload.workload import WeightedBatch, Workload, load_workload


class Compiler(FormulaEvaluator):
    """Answers by formula, with digests of schedules that a newer compiler may change."""

    def __init__(self, *, digest="a", slower=(), **options):
        super().__init__(Fidelity.SIMULATED, **options)
        self.digest, self.slower = digest, slower

    def answer(self, candidate, num_batches=2):
        known = super().answer(candidate, num_batches)
        factor = 10 if candidate.config in self.slower and known.ok else 1
        return replace(
            known,
            time_us=known.time_us and factor * known.time_us,
            batch_us=tuple(factor * us for us in known.batch_us),
            metrics={"bound_by": "hbm", "schedule_digest": self.digest},
        )


@pytest.fixture(scope="module")
def workload_file(tmp_path_factory):
    """A workload that a row can name."""
    import json

    batches = (
        Batch(q_lens=(1, 1, 1), kv_lens=(100, 700, 1500), num_decode=3),
        Batch(q_lens=(1, 1), kv_lens=(128, 129), num_decode=2),
    )
    path = tmp_path_factory.mktemp("workload") / "mine.json"
    weighted = tuple(WeightedBatch(batch=batch, weight=0.5) for batch in batches)
    workload = Workload(name=str(path), source="made up", batches=weighted)
    path.write_text(json.dumps(workload.to_dict()))
    return path


@pytest.fixture
def study(workload_file):
    workload = load_workload(str(workload_file), page_size=128)
    problem = problem_for(load_model("gemma2-9b"), workload=workload, page_size=128, windowed=True)
    problem = replace(problem, sliding_window=1000)  # the key rounds it up
    return Study(
        name="v6e/decode", family=load_family("decode"), problem=problem, chip=load_chip("v6e"),
        workload=workload.for_family("decode"),
    )  # fmt: skip


def tune(study, folder, evaluator, *, objective=EXPECTED_TIME, worst=False):
    """Writes the row of the fastest config, or of the slowest, and reads it back."""
    configs = [study.heuristic(), *study.space().configs]
    pick = max if worst else min
    best = pick((c for c in configs if c != study.heuristic()), key=true_us)
    answers = list(
        evaluator.evaluate_all([study.candidate(c) for c in (study.heuristic(), best)],
                               study.workload)
    )  # fmt: skip
    answers = [replace(a, provenance={**a.provenance, **today()}) for a in answers]
    known = answers[0] if answers[0].ok else None
    row = make_row(decide(answers, known, objective=objective), answers, study.workload)
    merge_into(folder, [row])
    return read_table(folder / "v6e" / "decode.jsonl")[0]


def today():
    return {name: versions()[name] for name in ("jax", "libtpu")}


def check(row, evaluator, tmp_path):
    with Journal(tmp_path / "check.jsonl") as journal:
        evaluators = {Fidelity.SIMULATED: evaluator}
        return ask(row, Oracle(evaluators=evaluators, journal=journal, watch=Watch()))


def rules(found):
    return [finding.rule for finding in found.findings]


def test_the_very_study_is_made_again(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    again = remake(row)
    assert again.problem == study.problem
    assert again.problem.sliding_window == 1000
    assert again.candidate(study.heuristic()) == study.candidate(study.heuristic())


def test_nothing_changed(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    assert row.evidence.verdict == "tuned"
    found = check(row, Compiler(), tmp_path)
    assert (found.schedule, found.findings, found.older) == ("same", (), {})
    assert found.time_us == pytest.approx(row.evidence.time_us, abs=1e-3)
    assert found.heuristic_us == pytest.approx(row.evidence.heuristic_us, abs=1e-3)


def test_the_store_answers_the_second_time(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    compiler = Compiler()
    check(row, compiler, tmp_path)
    assert len(compiler.asked) == 2
    check(row, compiler, tmp_path)
    assert len(compiler.asked) == 2


def test_another_schedule_is_a_finding(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    found = check(row, Compiler(digest="b", scale=1.1), tmp_path)
    assert rules(found) == ["schedule"]
    assert "(+10.0 %)" in found.findings[0].message


def test_a_row_without_a_digest_is_unknown_and_not_changed(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler(digest=""))
    found = check(row, Compiler(digest="b", scale=1.04), tmp_path)
    assert (found.schedule, found.findings) == ("unknown", ())
    moved = check(row, Compiler(digest="b", scale=1.06), tmp_path / "other")
    assert (moved.schedule, rules(moved)) == ("unknown", ["time"])


def test_a_rank_that_flipped_is_a_finding(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    own = [config for config in study.space().configs if config_to_dict(config) == row.configs[0]]
    found = check(row, Compiler(slower=own), tmp_path)
    assert rules(found) == ["time", "rank"]


def test_a_row_that_pins_the_heuristic_allows_for_the_evaluators_error(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler(), worst=True)
    assert row.evidence.verdict == "heuristic"
    config = study.heuristic()
    answer = Compiler().answer(study.candidate(config))
    found = check_versions(row)
    for gain, expected in ((1.04, []), (1.06, ["rank"])):
        faster = replace(answer, time_us=answer.time_us / gain)
        assert rules(compare(found, [answer], faster, study.workload)) == expected


def test_a_config_that_no_longer_compiles_is_a_finding(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    refuse = Compiler(statuses=lambda config: Status.OUT_OF_MEMORY)
    found = check(row, refuse, tmp_path)
    assert rules(found) == ["fit"]
    assert found.time_us is None
    crash = Compiler(statuses=lambda config: Status.CRASHED)
    assert rules(check(row, crash, tmp_path / "other")) == ["unanswered"]


def test_a_config_that_the_kernel_forgot_is_a_finding(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    other = replace(row, configs=({**row.configs[0], "gone": 1},))
    assert rules(check(other, Compiler(), tmp_path)) == ["fit"]


def test_a_workload_that_cannot_be_made_again_is_said(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    for changes, text in (
        ({"workload": "of a plan"}, "unknown workload 'of a plan'"),
        ({"workload_digest": "0" * 16}, "has other batches now"),
    ):
        other = replace(row, evidence=replace(row.evidence, **changes))
        found = check(other, Compiler(), tmp_path)
        assert rules(found) == ["remake"]
        assert text in found.findings[0].message


def test_a_workload_without_a_name_is_that_of_a_plan(study, workload_file, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    evidence = replace(row.evidence, workload="custom")
    nameless = replace(row, evidence=evidence)
    text = "chip: v6e\nmodel: gemma2-9b\nfamilies: [decode]\npage_size: 128\nworkload: {}\n"
    plans = []
    for i, name in enumerate(("azure-code", workload_file)):
        (tmp_path / f"{i}.yaml").write_text(text.format(name))
        plans.append(load_plan(tmp_path / f"{i}.yaml"))
    assert rules(check_versions(nameless)) == ["remake"]
    assert rules(check_versions(nameless, plans[:1])) == ["remake"]
    assert rules(check_versions(nameless, plans)) == []
    assert remake(nameless, plans).workload.digest == study.workload.digest


def test_a_row_judged_by_another_objective_is_made_again(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler(), objective=WORST_REGRET)
    assert row.evidence.workload.endswith(f", by {WORST_REGRET}")
    assert remake(row).workload == study.workload


def test_a_weighted_set_is_made_again(study, workload_file, tmp_path):
    parts = {str(workload_file): 3, "azure-code": 1}
    workload = load_workload(parts, page_size=128).for_family("decode")
    problem = problem_for(load_model("llama3-8b"), workload=workload, page_size=128)
    both = replace(study, workload=workload, problem=problem)
    row = tune(both, tmp_path / "t", Compiler())
    assert remake(row).workload.digest == workload.digest


def test_a_rule_picks_the_time_of_each_batch(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    rule = (Clause(use=1, feature="num_seqs", at_most=2), Clause(use=0))
    configs = study.space().configs[:2]
    two = replace(row, configs=tuple(config_to_dict(config) for config in configs), rule=rule)
    answers = [
        Evaluation(candidate=study.candidate(config), fidelity=Fidelity.SIMULATED,
                   status=Status.OK, time_us=sum(us) / 2, batch_us=us,
                   metrics={"schedule_digest": "a"})
        for config, us in zip(configs, ((30.0, 7.0), (5.0, 50.0)), strict=True)
    ]  # fmt: skip
    found = compare(check_versions(two), answers, None, study.workload)
    assert found.time_us == (30.0 + 50.0) / 2
    # Two schedules are not the one of the row, and the first alone is faster than with the rule.
    assert rules(found) == ["schedule", "rank"]
    assert "configs[0] alone takes 18.5 us, the row 40.0 us" in found.findings[1].message
    other_way = replace(two, rule=(replace(rule[0], use=0), Clause(use=1)))
    found = compare(check_versions(other_way), answers, None, study.workload)
    assert (found.time_us, rules(found)) == ((5.0 + 7.0) / 2, ["schedule"])


def test_versions_are_compared_without_asking(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    assert not check_versions(row).findings
    older = replace(row, evidence=replace(row.evidence, libtpu="0.0.1"))
    found = check_versions(older)
    assert rules(found) == ["versions"]
    assert found.older == {"libtpu": ("0.0.1", versions()["libtpu"])}
    assert row.evidence.kernel_digest == kernel_digest("decode")


def test_another_jax_under_the_same_libtpu_is_no_finding(study, tmp_path):
    row = tune(study, tmp_path / "t", Compiler())
    other_jax = replace(row, evidence=replace(row.evidence, jax="0.0.1"))
    found = check_versions(other_jax)
    assert (rules(found), found.is_other_jax_alone) == ([], True)
    assert found.older == {"jax": ("0.0.1", versions()["jax"])}
    for changes in ({"libtpu": "0.0.1"}, {"kernel_digest": "0" * 16}):
        both = replace(other_jax, evidence=replace(other_jax.evidence, **changes))
        found = check_versions(both)
        assert (rules(found), found.is_other_jax_alone) == (["versions"], False)
    assert not check_versions(row).is_other_jax_alone
    # Asked again it is judged like any other.
    assert rules(check(other_jax, Compiler(digest="b"), tmp_path)) == ["schedule"]


def test_a_row_of_a_servers_shape_is_made_again_with_its_plan(tmp_path, monkeypatch):
    """The batches of a shape have no name that could be loaded; the plan makes them again."""
    path = tmp_path / "server.yaml"
    path.write_text(
        "chip: [v6e, v5e]\nmodel: [llama3-8b, qwen3-4b]\ntp: [1, 2]\nfamilies: [decode]\n"
        "page_size: 128\n"
        "workload: {requests: {count: 8, prompt_tokens: 100, output_tokens: 20}}\n"
        "server: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 1024}\n"
    )
    plan = load_plan(path)
    studies = [study for study in build_studies(plan) if study.chip.name == "v6e"]
    served = []

    def build(only):
        served.append(len(only.servers))
        return build_studies(only)

    monkeypatch.setattr(recheck, "build_studies", build)
    for number, study in enumerate(studies):
        row = tune(study, tmp_path / str(number), Compiler())
        assert rules(check_versions(row)) == ["remake"]
        assert rules(check_versions(row, [plan])) == []
        again = remake(row, [plan])
        assert again.workload.digest == study.workload.digest
        assert again.problem == study.problem
    # Both models have 32 query heads and 8 KV heads of 128: of eight servers, two have a row's key.
    assert served == [2, 2]


def test_runners_up_are_asked_again_and_one_that_overtook_is_said(study, tmp_path):
    configs = sorted(dict.fromkeys([study.heuristic(), *study.space().configs]), key=true_us)[:6]
    wave = [study.candidate(config) for config in dict.fromkeys([study.heuristic(), *configs])]
    told = Compiler().evaluate_all(wave, study.workload)
    answers = [replace(a, provenance={**a.provenance, **today()}) for a in told]
    heuristic = next(a for a in answers if a.candidate.config == study.heuristic())
    row = make_row(decide(answers, heuristic), answers, study.workload)
    merge_into(tmp_path / "t", [row])
    row = read_table(tmp_path / "t" / "v6e" / "decode.jsonl")[0]  # as it is read back
    named = [one["config"] for one in row.evidence.runners_up]
    ranked = [config_to_dict(c) for c in configs if config_to_dict(c) not in row.configs]
    assert named == ranked[:3]
    calm = check(row, Compiler(), tmp_path)
    assert (rules(calm), calm.overtaken_by) == ([], ())
    assert [one.time_us for one in calm.runners_up] == pytest.approx(
        [one["time_us"] for one in row.evidence.runners_up], abs=1e-3
    )
    (own,) = [c for c in configs if config_to_dict(c) in row.configs]
    flipped = check(row, Compiler(slower=[own], digest="b"), tmp_path / "other")
    assert rules(flipped)[:1] == ["schedule"]
    assert set(rules(flipped)[1:]) == {"rank"}
    no_faster = [r for r in row.evidence.runners_up if r["time_us"] >= row.evidence.time_us]
    assert [one.config for one in flipped.overtaken_by] == [one["config"] for one in no_faster]
    assert any("a runner-up takes" in finding.message for finding in flipped.findings)


@pytest.mark.parametrize(
    "wrong",
    [{"config": {"bq_sz": 8}}, {"config": {"bq_sz": "8"}, "time_us": 1.0},
     {"config": {"bq_sz": 8}, "time_us": float("inf")}, "fast"],
)  # fmt: skip
def test_runners_up_of_a_file_are_checked(study, tmp_path, wrong):
    row = tune(study, tmp_path / "t", Compiler())
    data = row.to_dict()
    data["evidence"]["runners_up"] = [wrong]
    with pytest.raises(ValueError, match=r"runners_up|configs"):
        row_from_dict(data, chip="v6e", family="decode")
    data["evidence"]["runners_up"] = [{"config": {"bq_sz": 8}, "time_us": 1.0}] * 4
    with pytest.raises(ValueError, match="a list to 3"):
        row_from_dict(data, chip="v6e", family="decode")
