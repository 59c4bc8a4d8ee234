"""A launch recorded once is timed again: the same cycle as a run, under any parameters."""

import dataclasses

import numpy as np
import pytest
from golden import make
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import interpret
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.recording import pack, unpack
from rpa_tune.llo.replay import replay
from rpa_tune.llo.simulate import MAX_BUNDLES, record, replay_us, simulate

NAMES = [f"{path.parent.name}/{path.name}" for path in make.dump_files()]
FEW = [name for name in NAMES if name.startswith("0.0.42.1")]
# Factors on parameters; a machine that nobody would build must do too.
FACTORS = st.fixed_dictionaries(
    {
        name: st.sampled_from((0.1, 0.5, 1.0, 3.0, 20.0))
        for name in (
            "read_fixed_cycles", "read_latency_cycles", "read_linear_bytes_per_s",
            "read_strided_bytes_per_s", "copy_limit", "write_fixed_cycles",
            "write_latency_cycles", "write_linear_bytes_per_s", "local_latency_cycles",
            "matmul_latency_bf16_cycles", "matmul_latency_f32_cycles", "matmul_queue_cycles",
            "shared_bytes_per_s", "launch_us", "clock_hz",
        )
    }
    | {"copy_queues": st.sampled_from((1.0, 2.0))}
)  # fmt: skip


def changed(machine, factors):
    values = {
        name: factor if name == "copy_queues" else machine.value(name) * factor
        for name, factor in factors.items()
        if name in machine.numbers
    }
    # A limit for one copy, which no chip has by itself.
    values["read_copy_bytes_per_s"] = values["read_linear_bytes_per_s"] * factors["copy_limit"]
    return machine.with_values(values, source="test", confidence="guess")


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_ends_with_the_run(name):
    chip, _ = make.chip_and_family(make.DUMPS / name)
    program, machine = make.program(name), load_machine(chip)
    operands = make.operands_of(name)
    launch = record(program, machine, operands)
    timeline = simulate(program, machine, operands)
    (us,) = replay_us([launch], [machine])
    assert us == timeline.time_us
    assert sum(recording.num_bundles for recording in launch.cores) == timeline.num_bundles


def test_launches_follow_each_other_and_only_kernels_are_launched():
    machine = load_machine(make.chip_and_family(make.DUMPS / FEW[0])[0])
    launch = record(make.program(FEW[0]), machine, make.operands_of(FEW[0]))
    inner = launch._replace(is_kernel=False)
    (alone,), (within,) = replay_us([launch], [machine]), replay_us([inner], [machine])
    assert alone - within == pytest.approx(machine.value("launch_us"), abs=0.001)
    assert replay_us([launch, inner, launch], [machine]) == [pytest.approx(2 * alone + within)]
    assert replay_us([], [machine]) == [0.0]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FEW), FACTORS)
def test_a_replay_a_compiled_run_and_the_oracle_agree_under_any_parameters(name, factors):
    chip, _ = make.chip_and_family(make.DUMPS / name)
    program, operands = make.program(name), make.operands_of(name)
    machine = load_machine(chip)
    launch = record(program, machine, operands)
    other = rates_of(changed(machine, factors), program.num_cores)
    for core, recording in enumerate(launch.cores):
        fast = run_fast(program, other, operands, core=core, max_bundles=MAX_BUNDLES)
        (usual,) = replay(recording, [rates_of(machine, program.num_cores)])
        for alike in (other, rates_of(machine, program.num_cores)._replace(queues=other.queues)):
            (end,) = replay(recording, [alike])
            assert replay(recording, [other, alike]) == [fast.end_cycle, end], "side by side"
        both = [rates_of(machine, program.num_cores), other]  # may differ in their queues
        assert replay(recording, both) == [usual, fast.end_cycle]
    slow = interpret(program, other, operands, core=0)
    fast = run_fast(program, other, operands, core=0, max_bundles=MAX_BUNDLES)
    assert slow.end_cycle == fast.end_cycle
    assert (slow.stall_cycles == fast.stall_cycles).all()
    assert slow.engines == fast.engines


def test_recording_changes_nothing_of_a_run():
    program, operands = make.program(FEW[0]), make.operands_of(FEW[0])
    rates = rates_of(load_machine(make.chip_and_family(make.DUMPS / FEW[0])[0]))
    plain = run_fast(program, rates, operands, max_bundles=MAX_BUNDLES)
    taped = run_fast(program, rates, operands, max_bundles=MAX_BUNDLES, is_recorded=True)
    assert len(plain.trace) == 0 < len(taped.trace)
    for field in dataclasses.fields(plain):
        if field.name != "trace":
            same = getattr(plain, field.name) == getattr(taped, field.name)
            assert np.all(same), field.name


def test_a_recording_grows_when_it_must(monkeypatch):
    program, operands = make.program(FEW[0]), make.operands_of(FEW[0])
    rates = rates_of(load_machine(make.chip_and_family(make.DUMPS / FEW[0])[0]))
    whole = run_fast(program, rates, operands, max_bundles=MAX_BUNDLES, is_recorded=True)
    monkeypatch.setattr("rpa_tune.llo.fast._TRACE_WORDS", 16)
    grown = run_fast(program, rates, operands, max_bundles=MAX_BUNDLES, is_recorded=True)
    assert (whole.trace == grown.trace).all()


def test_packed_recordings_come_back_whole_and_are_a_function_of_what_they_hold():
    name = next(name for name in FEW if make.TWO_CORES in name)
    machine = load_machine(make.chip_and_family(make.DUMPS / name)[0])
    launch = record(make.program(name), machine, make.operands_of(name))
    assert len(launch.cores) == 2
    launches = [launch, launch._replace(cores=launch.cores[:1], is_kernel=False), launch]
    packed = pack(launches)
    assert pack(launches) == packed
    again = unpack(packed)
    assert replay_us(again, [machine]) == replay_us(launches, [machine])
    assert [one.is_kernel for one in again] == [True, False, True]
    for one, other in zip(again, launches, strict=True):
        assert [r.num_flags for r in one.cores] == [r.num_flags for r in other.cores]


@pytest.mark.parametrize("content", [b"", b"PK", pack(())[:-3]])
def test_what_is_no_recording_is_refused(content):
    with pytest.raises(ValueError, match="not a recording"):
        unpack(content)
