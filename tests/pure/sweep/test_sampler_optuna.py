"""Optuna's samplers over a pool; `test_samplers.py` has what all samplers promise."""

from dataclasses import replace
from types import SimpleNamespace

import optuna
from fake_sweep import FormulaEvaluator, make_study

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.sweep.sampler_optuna import OptunaSampler

STUDY = make_study()
SPACE = STUDY.space()


def make_sampler(pool, *, num_seeds=0, **search):
    options = replace(STUDY.search, **search)
    return OptunaSampler("tpe", SPACE, pool, num_seeds=num_seeds, search=options)


def tell(sampler, configs, statuses=None):
    evaluator = FormulaEvaluator(Fidelity.SIMULATED, statuses=statuses)
    answers = [evaluator.answer(STUDY.candidate(config)) for config in configs]
    sampler.tell(answers)
    return answers


def test_answers_are_trials_of_places_on_the_axes_and_failures_are_failed() -> None:
    sampler = make_sampler(SPACE.configs)
    config, bad = SPACE.configs[5], SPACE.configs[9]
    answers = tell(sampler, [config, bad],
                   lambda c: Status.CRASHED if c == bad else Status.OK)  # fmt: skip
    done, failed = sampler._study().trials
    assert done.state is optuna.trial.TrialState.COMPLETE
    values = {axis.name: axis.values for axis in SPACE.axes}
    assert {name: values[name][i] for name, i in done.params.items()} == {
        name: getattr(config, name) for name in values
    }
    assert done.value == answers[0].time_us
    assert (failed.state, failed.value) == (optuna.trial.TrialState.FAIL, None)


def test_a_seed_from_outside_the_axes_is_asked_for_and_teaches_nothing() -> None:
    outside = replace(SPACE.configs[0], bkv_sz=4096)
    sampler = make_sampler([outside, *SPACE.configs], num_seeds=1, wave=1)
    assert sampler.ask() == [outside]
    tell(sampler, [outside])
    assert sampler._study().trials == []


def test_seeds_come_in_their_order_before_any_proposal() -> None:
    seeds = list(reversed(SPACE.configs[:5]))
    sampler = make_sampler([*seeds, *SPACE.configs[5:]], num_seeds=5, wave=4)
    assert sampler.ask() == seeds[:4]
    assert sampler.ask()[0] == seeds[4]


def test_the_nearest_open_config_stands_for_a_proposal(monkeypatch) -> None:
    pool = [SPACE.configs[0], SPACE.configs[-1]]
    sampler = make_sampler(pool, wave=2)
    top = {axis.name: len(axis.values) - 1 for axis in SPACE.axes}
    study = SimpleNamespace(ask=lambda ranges: SimpleNamespace(params=top))
    monkeypatch.setattr(sampler, "_study", lambda: study)
    assert sampler.ask() == [pool[1], pool[0]]  # the second time the nearest is taken


def test_an_axis_of_one_value_is_no_obstacle() -> None:
    assert any(len(axis.values) == 1 for axis in SPACE.axes)
    asked = make_sampler(SPACE.configs, simulate=3, wave=3).ask()
    assert len(set(asked)) == 3
