"""Samplers: what they ask for, what they never ask for, and that answers alone decide."""

import importlib.util
import random
from dataclasses import replace

import pytest
from fake_sweep import FormulaEvaluator, make_study, true_us

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.errors import UsageError
from rpa_tune.sweep.sampler_choice import make_sampler

KINDS = ("kriging", "tpe", "random")
STUDY = make_study(num_buffers=(2, 3, 4))
SPACE = STUDY.space()
SEED = SPACE.configs[7]


def pool_from(start=SEED, configs=SPACE.configs):
    return [start, *(config for config in configs if config != start)]


def bounds(configs, scale=0.5):
    below = FormulaEvaluator(Fidelity.ANALYTICAL, scale=scale)
    return {config: below.answer(STUDY.candidate(config)) for config in configs}


def play(kind, pool, *, below=None, statuses=None, **search):
    """The waves that a sampler asks for, to the last, while the formula answers."""
    evaluator = FormulaEvaluator(Fidelity.SIMULATED, statuses=statuses)
    options = replace(STUDY.search, **{"least_gain_pct": 0.0, **search})
    sampler = make_sampler(kind, SPACE, pool, below or {}, num_seeds=1, search=options)
    waves = []
    while wave := sampler.ask():
        waves.append(wave)
        sampler.tell([evaluator.answer(STUDY.candidate(config)) for config in wave])
    return waves


def asked_by(*arguments, **options):
    return [config for wave in play(*arguments, **options) for config in wave]


def failing(config):
    return Status.COMPILE_FAILED if config.seqs_per_step > 1 else Status.OK


def never(config):
    return Status.CRASHED


@pytest.mark.parametrize("statuses", [None, failing, never], ids=["fine", "failing", "never"])
@pytest.mark.parametrize("wave", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_wave_is_of_the_pool_and_new_and_the_budget_is_spent(kind, wave, statuses):
    waves = play(kind, pool_from(), wave=wave, simulate=14, statuses=statuses)
    asked = [config for each in waves for config in each]
    assert asked[0] == SEED
    assert len(asked) == len(set(asked)) == 14
    assert set(asked) <= set(SPACE.configs)
    assert [len(each) for each in waves[:-1]] == [wave] * (len(waves) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_smaller_than_the_budget_is_asked_for_whole(kind):
    pool = pool_from(configs=SPACE.configs[:11])
    asked = asked_by(kind, pool, simulate=50)
    assert sorted(map(repr, asked)) == sorted(map(repr, pool))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answers_give_the_same_waves(kind):
    assert play(kind, pool_from(), below=bounds(SPACE.configs)) == play(
        kind, pool_from(), below=bounds(SPACE.configs)
    )


def test_kriging_learns_from_answers():
    """Waves after the first are not those of a sampler that was told something else."""
    flipped = play("kriging", pool_from(), statuses=failing)
    assert play("kriging", pool_from())[0] == flipped[0]
    assert play("kriging", pool_from()) != flipped


def test_kriging_never_asks_for_what_is_proven_slower():
    below = bounds(SPACE.configs, scale=0.95)
    best_us, proven = float("inf"), 0
    for wave in play("kriging", pool_from(), below=below, wave=4, simulate=60):
        for config in wave if best_us < float("inf") else ():
            assert below[config].time_us < best_us
        best_us = min(best_us, *(true_us(config) for config in wave))
        proven = sum(answer.time_us >= best_us for answer in below.values())
    assert proven > len(SPACE.configs) / 2  # so that there was something to refuse


def test_kriging_ends_when_nothing_is_worth_a_compile():
    best_us = min(map(true_us, SPACE.configs))
    below = bounds(SPACE.configs)
    numbers = []
    for percent in (0.0, 0.3, 5.0):
        asked = asked_by(
            "kriging", pool_from(), below=below, wave=4, simulate=40, least_gain_pct=percent
        )
        numbers.append(len(asked))
        assert min(map(true_us, asked)) <= best_us * (1 + percent / 100)
    assert 4 <= numbers[2] <= numbers[1] < numbers[0]
    # What has not worked yet is no reason to stop.
    nothing = asked_by("kriging", pool_from(), simulate=20, statuses=never, least_gain_pct=5.0)
    assert len(nothing) == 20


def test_kriging_goes_on_when_all_answers_are_alike(monkeypatch):
    monkeypatch.setattr("fake_sweep.true_us", lambda config: 100.0)
    asked = asked_by("kriging", pool_from(), wave=2, simulate=20)
    assert len(set(asked)) == 20
    # Certain of nothing, it looks where it knows least: every axis is tried from end to end.
    for axis in SPACE.axes:
        assert {axis.values[0], axis.values[-1]} <= {getattr(config, axis.name) for config in asked}


@pytest.mark.parametrize("kind", ["kriging", "tpe"])
def test_searching_beats_drawing(kind):
    """From sixteen starts, sixteen answers of 81; what is lost to the best, in the mean."""
    best_us = min(map(true_us, SPACE.configs))
    starts = random.Random(0).sample(SPACE.configs, 16)

    def mean_regret(name):
        found = [
            min(map(true_us, asked_by(name, pool_from(start), simulate=16, seed=seed)))
            for seed, start in enumerate(starts)
        ]
        return sum(us / best_us - 1 for us in found) / len(found)

    assert mean_regret(kind) < mean_regret("random")
    if kind == "kriging":
        assert mean_regret(kind) < 0.01


def test_a_proposal_that_cannot_exist_becomes_its_nearest_neighbour():
    """One config in ten exists: TPE must still spend its whole budget, and near what is good."""
    few = random.Random(1).sample(SPACE.configs, 12)
    asked = asked_by("tpe", pool_from(few[0], few), wave=2, simulate=9)
    assert set(asked) <= set(few)
    assert len(set(asked)) == 9
    best = min(few, key=true_us)
    assert best in asked


def test_optunas_process_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs PyTorch") as caught:
        play("gp", pool_from())
    assert "kriging" in caught.value.hint


def test_optunas_process_where_there_is_pytorch():
    pytest.importorskip("torch", reason="Optuna's GPSampler needs PyTorch")
    asked = asked_by("gp", pool_from(), simulate=12, wave=4)
    assert asked[0] == SEED
    assert len(set(asked)) == 12
    assert min(map(true_us, asked)) < true_us(SEED)
