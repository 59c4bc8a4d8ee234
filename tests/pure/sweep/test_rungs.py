"""Dominance, the climb to the next rung and the reasons of those left behind, by brute force."""

from dataclasses import asdict, replace

import pytest
from fake_sweep import AXES, FormulaEvaluator, make_study, true_us

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.decide.objective import EXPECTED_TIME, WORST_REGRET
from rpa_tune.families.registry import load_family
from rpa_tune.sweep.rungs import (
    BOUNDED,
    DOMINATED,
    HALVED,
    NOT_CHOSEN,
    Finalists,
    Stop,
    dominated,
    not_asked,
)

BLOCKWISE = {
    "bq_sz": (16, 64), "bq_csz": (16, 64), "bkv_sz": (128, 512), "bkv_csz": (128, 512),
    "num_buffers": (2, 3),
}  # fmt: skip
DECODE = make_study(**{**AXES, "bq_sz": (8, 16)})
MIXED = replace(make_study(), family=load_family("mixed"), overrides=BLOCKWISE)
OUT = Status.OUT_OF_MEMORY


def answer(study, config, status=Status.OK, fidelity=Fidelity.SIMULATED):
    """The formula's answer; for a family that it does not know, one without a time."""
    evaluator = FormulaEvaluator(fidelity, statuses=lambda _: status)
    if study.family.name == "decode":
        return evaluator.answer(study.candidate(config))
    assert status is not Status.OK
    blank = evaluator.answer(DECODE.candidate(DECODE.heuristic()))
    return replace(blank, candidate=study.candidate(config))


@pytest.mark.parametrize("study", [DECODE, MIXED], ids=["decode", "mixed"])
def test_dominance_is_that_of_every_field_and_of_scratch(study):
    """Every pair of a space: a plain definition, beside the one that the sweep uses."""
    space = study.space()
    target, scratch_bytes = study.chip.target, study.family.scratch_bytes
    need = {config: scratch_bytes(study.problem, config, target) for config in space.configs}
    num_dominated = 0
    for other in space.configs:
        told = [answer(study, other, OUT)]
        for config in space.configs:
            pairs = zip(asdict(config).values(), asdict(other).values(), strict=True)
            larger = config != other and all(mine >= theirs for mine, theirs in pairs)
            hungrier = need[config] >= need[other]
            stop = dominated(study.candidate(config), told, space.axes)
            assert (stop is not None) == (larger and hungrier), (config, other)
            num_dominated += stop is not None
            if stop:
                assert stop.reason == DOMINATED
                assert str(other) in stop.detail
    assert num_dominated > len(space.configs)


def test_what_is_larger_but_needs_less_is_asked_for():
    """A kernel may split what grows: then a larger block does not prove anything."""
    small, *_, large = DECODE.space().configs
    told, axes = [answer(DECODE, small, OUT)], DECODE.space().axes
    assert dominated(DECODE.candidate(large), told, axes)
    splitting = replace(
        DECODE.family, scratch_bytes=lambda problem, config, target: 2**20 // config.bkv_sz
    )
    study = replace(DECODE, family=splitting)
    assert dominated(study.candidate(large), told, axes) is None


@pytest.mark.parametrize("status", sorted(set(Status) - {OUT}))
def test_only_running_out_of_memory_dominates(status):
    configs = DECODE.space().configs
    told = [answer(DECODE, configs[0], status)]
    assert not any(dominated(DECODE.candidate(c), told, DECODE.space().axes) for c in configs)


def measure_all(finalists, fails=()):
    """Asks until there are no more questions; the waves, as configs."""
    waves = []
    while wave := finalists.ask():
        waves.append(wave)
        told = [answer(DECODE, c, Status.RUN_FAILED if c in fails else Status.OK) for c in wave]
        finalists.tell(told)
    return waves


@pytest.mark.parametrize("measure", [1, 3, 100])
def test_the_best_climb_and_the_heuristic_with_them(measure):
    configs = DECODE.space().configs[::3]
    slowest = max(configs, key=true_us)
    answers = [answer(DECODE, c, OUT if i % 5 == 4 else Status.OK) for i, c in enumerate(configs)]
    answers += [answer(DECODE, slowest)] * (slowest not in [a.candidate.config for a in answers])
    ranked = [a.candidate.config for a in sorted(answers, key=lambda a: a.time_us or 0) if a.ok]
    finalists = Finalists(answers, replace(DECODE.search, measure=measure), always=[slowest])
    (wave,) = measure_all(finalists)
    assert wave[:measure] == ranked[:measure]
    assert set(wave) == {*ranked[:measure], slowest} & set(ranked)
    stops = finalists.left_behind()
    assert {s.candidate.config for s in stops} == set(ranked) - set(wave)
    for stop in stops:
        assert stop.reason == HALVED
        rank = 1 + ranked.index(stop.candidate.config)
        assert f"rank {rank} of {len(ranked)}" in stop.detail


def test_who_fails_makes_way_for_the_next_best():
    ranked = sorted(DECODE.space().configs[::3], key=true_us)
    heuristic = ranked[-1]
    answers = [answer(DECODE, config) for config in reversed(ranked)]
    search = replace(DECODE.search, measure=3)
    fails = {ranked[0], ranked[2], ranked[3], ranked[6]}
    finalists = Finalists(answers, search, always=[heuristic])
    waves = measure_all(finalists, fails)
    assert waves == [[*ranked[:3], heuristic], ranked[3:5], ranked[5:6]]
    left = {stop.candidate.config for stop in finalists.left_behind()}
    assert left == set(ranked[6:]) - {heuristic}


def test_when_all_fail_all_are_asked_once():
    ranked = sorted(DECODE.space().configs[::5], key=true_us)
    answers = [answer(DECODE, config) for config in ranked]
    finalists = Finalists(answers, replace(DECODE.search, measure=4), always=[ranked[0]])
    waves = measure_all(finalists, fails=ranked)
    assert [config for wave in waves for config in wave] == ranked
    assert max(map(len, waves)) == 4
    assert not finalists.left_behind()
    assert finalists.best.candidate.config == ranked[0]


def test_a_heuristic_that_fails_leaves_no_place_free():
    ranked = sorted(DECODE.space().configs[::5], key=true_us)
    answers = [answer(DECODE, config) for config in ranked]
    finalists = Finalists(answers, replace(DECODE.search, measure=2), always=[ranked[-1]])
    assert measure_all(finalists, fails=ranked[-1:]) == [[*ranked[:2], ranked[-1]]]


def test_the_climb_goes_by_the_objective():
    """The fastest in the mean is twice as slow as could be on one batch."""
    times_us = ((14.0, 15.0), (20.0, 8.0), (10.0, 29.0))
    steady, fast, _ = configs = DECODE.space().configs[:3]
    answers = [
        replace(answer(DECODE, config), time_us=sum(us) / 2, batch_us=us)
        for config, us in zip(configs, times_us, strict=True)
    ]
    # Against the best of each batch, 10 and 8: at worst 15/8, 20/10 and 29/8.
    for objective, best in ((EXPECTED_TIME, fast), (WORST_REGRET, steady)):
        search = replace(DECODE.search, measure=1, objective=objective)
        finalists = Finalists(answers, search, always=[])
        assert measure_all(finalists) == [[best]]
        assert len(finalists.left_behind()) == 2


def test_everybody_left_behind_has_the_right_reason():
    configs = DECODE.space().configs
    asked, skipped_config, bound_less = configs[::8], configs[1], configs[2]
    answers = [answer(DECODE, config) for config in asked]
    best_us = min(map(true_us, asked))
    below = {
        c: replace(answer(DECODE, c, fidelity=Fidelity.ANALYTICAL), time_us=0.9 * true_us(c))
        for c in configs
        if c != bound_less
    }
    skipped = [Stop(candidate=DECODE.candidate(skipped_config), reason=DOMINATED, detail="")]
    pool = [DECODE.candidate(config) for config in configs]
    stops = not_asked(pool, answers, skipped, below, objective=EXPECTED_TIME)
    assert {s.candidate.config for s in stops} == set(configs) - {*asked, skipped_config}
    for stop in stops:
        config = stop.candidate.config
        proven = config in below and 0.9 * true_us(config) >= best_us
        assert stop.reason == (BOUNDED if proven else NOT_CHOSEN)
    assert {BOUNDED, NOT_CHOSEN} == {stop.reason for stop in stops}
