"""Kriging's arithmetic, against the textbook's; `test_samplers.py` has what samplers promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fake_sweep import FormulaEvaluator, make_study

from rpa_tune.candidate import Fidelity
from rpa_tune.sweep.sampler_kriging import (
    _NOISE,
    KrigingSampler,
    _expected_gain,
    _Kernel,
    _most_likely_kernel,
    _Process,
)

RNG = np.random.default_rng(0)
POINTS, AT = RNG.random((9, 3)), RNG.random((4, 3))
VALUES = np.sin(4 * POINTS[:, 0]) + POINTS[:, 1]
STUDY = make_study()
SPACE = STUDY.space()


def test_a_covariance_is_symmetric_positive_and_has_its_own_diagonal() -> None:
    kernel = _Kernel(0.6, 0.3)
    whole = kernel(POINTS, POINTS)
    np.testing.assert_allclose(whole, whole.T)
    np.testing.assert_allclose(np.diag(whole), kernel.variance(POINTS))
    assert np.linalg.eigvalsh(whole).min() > -1e-9
    # Without the straight line it falls with the distance, from 1 to 0.
    smooth = _Kernel(0.5, 0.0)(np.zeros((1, 1)), np.array([[0.0], [0.3], [3.0], [30.0]]))[0]
    assert smooth[0] == 1
    assert smooth[0] > smooth[1] > smooth[2] > smooth[3]
    assert smooth[3] < 1e-6


def test_predictions_are_those_of_universal_kriging() -> None:
    """Mean by generalised least squares, solved directly instead of by factors."""
    kernel = _Kernel(0.6, 0.2)
    process = _Process(kernel, POINTS, VALUES)
    inverse = np.linalg.inv(kernel(POINTS, POINTS) + _NOISE * np.eye(len(POINTS)))
    ones = np.ones(len(POINTS))
    mean = ones @ inverse @ VALUES / (ones @ inverse @ ones)
    scale = (VALUES - mean) @ inverse @ (VALUES - mean) / len(VALUES)
    cross = kernel(POINTS, AT)
    expected = mean + cross.T @ inverse @ (VALUES - mean)
    variance = scale * (kernel.variance(AT) - np.einsum("ij,ik,kj->j", cross, inverse, cross))
    found, deviation = process.predict(AT)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-6)
    sign, logdet = np.linalg.slogdet(inverse)
    assert sign == 1
    likelihood = 0.5 * logdet - 0.5 * len(VALUES) * np.log(scale)
    assert process.log_likelihood() == pytest.approx(likelihood, rel=1e-8)


def test_it_is_sure_of_what_it_was_told_and_of_little_else() -> None:
    process = _Process(_Kernel(0.3, 0.2), POINTS, VALUES)
    there, sure = process.predict(POINTS)
    np.testing.assert_allclose(there, VALUES, atol=0.05)
    _, unsure = process.predict(POINTS + 5.0)
    assert sure.max() < unsure.min() / 5


def test_a_cluster_of_good_answers_does_not_make_all_else_look_good() -> None:
    near = np.array([[0.5 + 0.001 * i] for i in range(8)])
    points, values = np.vstack([near, [[0.0]], [[1.0]]]), np.array([0.0] * 8 + [1.0, 1.0])
    # Far from all answers the mean of three places is expected, not that of ten answers.
    (far,), _ = _Process(_Kernel(0.3, 0.0), points, values).predict(np.array([[30.0]]))
    assert far > 0.5 > values.mean()


def test_the_likeliest_kernel_follows_the_answers() -> None:
    grid = np.linspace(0, 1, 12)[:, None]
    line = _most_likely_kernel(grid, grid[:, 0])
    rough = _most_likely_kernel(grid, np.sin(8 * grid[:, 0]))
    assert line._linear > rough._linear
    assert line._length > rough._length


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.3, 4.0])
def test_an_expected_gain_is_the_integral_of_what_is_gained(mean: float) -> None:
    best, deviation = 0.1, 0.7
    y = np.linspace(mean - 12 * deviation, best, 200_001)
    density = np.exp(-0.5 * ((y - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    integral = np.trapezoid((best - y) * density, y) if y[0] < best else 0.0
    (gain,) = _expected_gain(np.array([mean]), np.array([deviation]), best=best)
    assert gain == pytest.approx(integral, abs=2e-6)


def test_the_first_wave_is_seeds_the_least_bound_and_the_heuristics_surroundings() -> None:
    bound = FormulaEvaluator(Fidelity.ANALYTICAL, scale=0.5)
    below = {config: bound.answer(STUDY.candidate(config)) for config in SPACE.configs}
    least = min(SPACE.configs, key=lambda config: below[config].time_us)
    seeds = [SPACE.configs[-1], SPACE.configs[20]]
    pool = [*seeds, *(c for c in SPACE.configs if c not in seeds)]
    search = replace(STUDY.search, wave=6)
    first = KrigingSampler(SPACE, pool, below, num_seeds=2, search=search).ask()
    assert first[:3] == [*seeds, least]
    assert len(set(first)) == 6
    # The others are no neighbours of each other, and nearer to the heuristic than most.
    places = np.array([SPACE.coordinates(config) for config in first])
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(6)
    assert gaps[3:].min() >= 1 / 3
    away = [np.linalg.norm(SPACE.coordinates(config) - places[0]) for config in pool]
    assert gaps[3:, 0].max() < np.median(away)


def test_a_config_without_a_bound_can_be_asked_for() -> None:
    search = replace(STUDY.search, simulate=100, wave=100)
    pool = SPACE.configs
    assert len(KrigingSampler(SPACE, pool, {}, num_seeds=0, search=search).ask()) == len(pool)
