"""Calibration finds what the records determine and leaves the rest."""

from dataclasses import replace

import numpy as np
import pytest
from golden import make

from rpa_kernels.batch import Batch
from rpa_tune.errors import UsageError
from rpa_tune.llo.calibrate import Observation, draw, fit, predict, with_followers
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import record, simulate

NAME = "0.0.42.1/v6e_decode.txt.gz"
NAMES = ("read_latency_cycles", "matmul_latency_f32_cycles")


def observations(program, machine):
    lengths = ([1], [256] * 8, [100, 200], [16, 17, 250, 3], [256] * 3)
    for kv_lens in lengths:
        count = len(kv_lens)
        batch = Batch(q_lens=(1,) * count, kv_lens=tuple(kv_lens), num_decode=count)
        operands = make.operands("decode", batch)
        time_us = simulate(program, machine, operands).time_us
        yield Observation(
            label=str(kv_lens),
            launches=(record(program, machine, operands),),
            measured_us=time_us,
        )


def test_finds_the_parameters_that_made_the_times():
    start = load_machine("v6e")
    truth = start.with_values(
        with_followers({"read_latency_cycles": 1600.0, "matmul_latency_f32_cycles": 350.0}),
        source="test",
        confidence="fitted",
    )
    seen = list(observations(make.program(NAME), truth))
    result = fit(start, seen, NAMES, prior=5.0)
    assert result.values["read_latency_cycles"] == pytest.approx(1600, rel=0.05)
    measured = [o.measured_us for o in seen]
    assert list(result.predicted_us) == pytest.approx(measured, rel=0.01)
    assert list(result.held_out_us) == pytest.approx(measured, rel=0.02)
    assert set(NAMES).isdisjoint(result.machine.guesses)


def test_leaves_what_the_records_do_not_determine():
    start = load_machine("v6e")
    seen = list(observations(make.program(NAME), start))
    result = fit(start, seen, ("local_bytes_per_s",), hold_out=False)
    assert result.values["local_bytes_per_s"] == pytest.approx(
        start.value("local_bytes_per_s"), rel=0.02
    )
    assert predict(result.machine, seen) == pytest.approx([o.measured_us for o in seen], rel=0.01)


def test_refuses_nothing_to_fit():
    with pytest.raises(UsageError, match="no measured times"):
        fit(load_machine("v6e"), [], NAMES)


def test_refuses_unknown_parameters():
    seen = list(observations(make.program(NAME), load_machine("v6e")))
    with pytest.raises(UsageError, match="warp_drive"):
        fit(load_machine("v6e"), seen, ("warp_drive",))


def test_a_group_is_left_out_whole():
    start = load_machine("v6e")
    truth = start.with_values(
        with_followers({"read_latency_cycles": 1600.0}), source="test", confidence="fitted"
    )
    seen = [replace(o, group="alike") for o in observations(make.program(NAME), truth)]
    result = fit(start, seen, NAMES, prior=5.0)
    # Nothing is left to fit to: each is predicted by the machine at the start.
    assert list(result.held_out_us) == pytest.approx(list(predict(start, seen)))


def test_what_follows_two_parameters_follows_the_later_one():
    values = with_followers({"read_linear_bytes_per_s": 1.0, "read_strided_bytes_per_s": 2.0})
    assert values["write_linear_bytes_per_s"] == 1.0
    assert values["write_strided_bytes_per_s"] == 2.0
    assert with_followers({"read_linear_bytes_per_s": 1.0})["read_strided_bytes_per_s"] == 1.0


def test_drawn_sets_surround_the_fit_as_far_as_it_is_sure():
    start = load_machine("v6e")
    seen = list(observations(make.program(NAME), start))
    names = ("read_latency_cycles", "local_bytes_per_s")
    result = fit(start, seen, names, hold_out=False)
    rows = draw(result.machine, names, result.covariance, count=400)
    order = list(with_followers(result.values))
    spread = np.log(rows).std(axis=0)
    latency, local = (spread[order.index(name)] for name in names)
    assert latency < 0.1, "the times determine it"
    assert local > 0.3, "they do not"
    column = rows[:, order.index("read_latency_cycles")]
    assert np.exp(np.log(column).mean()) == pytest.approx(result.values["read_latency_cycles"])
    assert (rows[:, order.index("write_latency_cycles")] == column).all()
