"""What a program runs: alike computations have one schedule, copies outside them have none."""

import importlib
from pathlib import Path

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.llo.engines import Direction
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.recording import pack, unpack
from rpa_tune.llo.simulate import replay_us

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

# As libtpu 0.0.48 writes it, shortened.
MODULE = """HloModule jit_attend, is_scheduled=true

%fused_computation (param_0.6: bf16[32,512]) -> bf16[512,32] {
  %param_0.6 = bf16[32,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %copy.6 = bf16[512,32]{1,0:T(8,128)(2,1)} copy(%param_0.6), metadata={op_name="a"}
}

%fused_computation.1 (param_0.7: bf16[32,512]) -> bf16[512,32] {
  %param_0.7 = bf16[32,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %negate.1 = bf16[512,32]{1,0:T(8,128)(2,1)} negate(%param_0.7)
}

ENTRY %main.7 (k.1: bf16[32,512], v.1: bf16[32,512]) -> bf16[512,32] {
  %k.1 = bf16[32,512]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="k"}
  %v.1 = bf16[32,512]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="v"}
  %hidden = (bf16[32,512]{1,0:T(8,128)S(1)}, bf16[32,512]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%v.1)
  %fusion.k = bf16[512,32]{1,0:T(8,128)(2,1)} fusion(%k.1), kind=kLoop, calls=%fused_computation
  %hidden-done = bf16[32,512]{1,0:T(8,128)S(1)} copy-done(%hidden)
  %fusion.v = bf16[512,32]{1,0:T(8,128)(2,1)} fusion(%v.1), kind=kLoop, calls=%fused_computation, metadata={op_name="v"}
  %start = (s32[65536]{0:T(1024)}, s32[65536]{0:T(1024)S(1)}, u32[]{:S(2)}) copy-start(%hidden-done)
  %done = s32[65536]{0:T(1024)} copy-done(%start)
  %less = s32[1]{0:T(128)S(6)} subtract(%done, %done)
  %call = bf16[512,32]{1,0} custom-call(%fusion.k, %fusion.v), backend_config={"text":"{
}}, metadata={op_name="kernel"}
  ROOT %tuple = (bf16[512,32]{1,0}) tuple(%call)
}
"""  # noqa: E501
SCHEDULES = ("fusion.k", "call")


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("hlo_steps")


def test_a_twin_runs_the_schedule_of_the_computation_that_it_is_like(steps):
    found = steps.read_steps(MODULE, SCHEDULES)
    assert [step.schedule for step in found] == ["fusion.k", "fusion.k", "", "call"]


def test_a_computation_like_no_other_needs_a_schedule(steps):
    text = MODULE.replace("%v.1), kind=kLoop, calls=%fused_computation,", "%v.1), calls=%other,")
    with pytest.raises(UsageError, match=r"fusion\.v: neither it nor"):
        steps.read_steps(text, SCHEDULES)
    # Of the same shapes, with another body.
    text = MODULE.replace(
        "%v.1), kind=kLoop, calls=%fused_computation,",
        "%v.1), kind=kLoop, calls=%fused_computation.1,",
    )
    with pytest.raises(UsageError, match=r"fusion\.v: neither it nor"):
        steps.read_steps(text, SCHEDULES)


def test_only_copies_that_nothing_runs_beside_take_time(steps):
    (copy,) = [step for step in steps.read_steps(MODULE, SCHEDULES) if not step.schedule]
    assert (copy.direction, copy.num_bytes) == (Direction.WRITE, 4 * 65536)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('  %s = ((), s32[]{:S(2)}) call-start(), async_execution_thread="sparsecore"', "SparseC"),
        ("  %loop = s32[] while(%k.1), condition=%c, body=%b", "loop: a while"),
    ],
)
def test_what_has_no_schedule_is_refused(steps, line, message):
    text = MODULE.replace("  %less", f"{line}\n  %less")
    with pytest.raises(UsageError, match=message):
        steps.read_steps(text, SCHEDULES)


def test_copies_one_after_the_other_cost_latency_and_bytes_each(steps):
    machine = load_machine("v7x")
    copies = [
        steps.Step(direction=Direction.WRITE, num_bytes=1 << 20),
        steps.Step(direction=Direction.READ, num_bytes=8),
    ]
    launch = steps.copies_launch(copies, 32)
    (packed,) = unpack(pack([launch]))
    assert not packed.is_kernel
    cycles = sum(
        machine.value(f"{way}_fixed_cycles")
        + size / machine.value(f"{way}_linear_bytes_per_s") * machine.value("clock_hz")
        + machine.value(f"{way}_latency_cycles")
        for way, size in (("write", 1 << 20), ("read", 32))
    )
    assert replay_us([packed], [machine])[0] == pytest.approx(
        cycles / machine.value("clock_hz") * 1e6, rel=5e-3
    )
