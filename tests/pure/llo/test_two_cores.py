"""Programs for both cores of a device: what a barrier may look like, and what each core does."""

import pytest
from pure.llo.dump_text import dump

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import Owner, rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import interpret
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate

V5P, V4 = load_machine("v5p"), load_machine("v4")
BARRIERS = {
    "v5p": (
        "%v1_v0 = vmov 77 /* materialized constant */",
        "%11 = vpush.ccrf %v1_v0",
        "%v2_v1 = vpop.ccrf",
        "%12 = vpush %v2_v1",
        "%s5_s4 = spop %12",
        "%p6_p0 = scmp.ne.s32.totalorder %s5_s4, 77",
        "%22 = shalt.err (%p6_p0) /* scheckeq: BarrierMegacore */",
    ),
    "v4": (
        "%22 = vsyncadd.remote %s1_s0, 1",
        "%23 = vwait.ge.trace [#allocation7], 1 /* barrier-megacore-wait */",
        "%24 = vsyncadd [#allocation7], 4294967295",
    ),
}
CORE_ID = "%s1_s0 = sld [smem:[#allocation0]] /* {}core id */"
# Then each core is busy for 1000 cycles times its number.
WORK = ("%s7_s5 = smul.u32 %s1_s0, 1000", "%30 = sdelay %s7_s5")


def run_cores(program, machine):
    """Runs of both cores; both interpreters agree on them."""
    rates = rates_of(machine)
    runs = []
    for core in range(program.num_cores):
        run = interpret(program, rates, {}, core=core, max_bundles=100)
        fast = run_fast(program, rates, {}, core=core, max_bundles=100)
        assert run.end_cycle == fast.end_cycle
        assert run.barriers == fast.barriers
        assert (run.stall_cycles == fast.stall_cycles).all()
        runs.append(run)
    return runs


@pytest.mark.parametrize("prefix", ["", "megacore core id :: "])
@pytest.mark.parametrize("chip", BARRIERS)
def test_cores_meet_and_then_differ_by_their_number(program_of, chip, prefix):
    machine = load_machine(chip)
    program = program_of(dump(CORE_ID.format(prefix), *BARRIERS[chip], *WORK))
    assert program.num_cores == 2
    first, second = run_cores(program, machine)
    assert first.barriers == second.barriers
    assert len(first.barriers) == 1
    assert second.end_cycle - first.end_cycle == 1000
    wait = round(machine.value("barrier_cycles"))
    assert first.stall_cycles[:, Owner.SYNC].sum() == wait
    timeline = simulate(program, machine, {})
    assert timeline.total_cycles == timeline.core_cycles[1] == timeline.core_cycles[0] + 1000
    assert "barrier_cycles" in timeline.guesses


def test_a_chips_number_out_of_a_table_is_not_a_cores(program_of):
    chip = "%s2_s1 = sld [smem:[%s1_s0]] /* core id */"
    program = program_of(dump("%s1_s0 = smov 4", chip, *WORK))
    assert program.core_id is None
    assert len(simulate(program, V5P, {}).core_cycles) == 1


def test_a_core_alone_needs_no_barrier(program_of):
    program = program_of(dump(CORE_ID.format(""), *WORK))
    assert program.num_cores == 1
    timeline = simulate(program, V5P, {})
    assert len(timeline.core_cycles) == 1
    assert "barrier_cycles" not in timeline.guesses


@pytest.mark.parametrize("chip", BARRIERS)
def test_cores_that_come_at_different_times_are_refused(program_of, chip):
    program = program_of(dump(CORE_ID.format(""), *WORK, *BARRIERS[chip]))
    with pytest.raises(DumpError, match="at different times") as caught:
        simulate(program, load_machine(chip), {})
    assert caught.value.hint


def test_another_word_than_the_expected_one_halts(program_of):
    *exchange, compare, halt = BARRIERS["v5p"]
    program = program_of(dump(CORE_ID.format(""), *exchange, compare.replace("77", "78"), halt))
    with pytest.raises(DumpError, match="halt"):
        simulate(program, V5P, {})


@pytest.mark.parametrize(
    ("bundles", "says"),
    [
        (("%11 = vpush.ccrf %v1_v0",), "of no constant"),
        (("%v1_v0 = vmov %v3_v2", "%11 = vpush.ccrf %v1_v0"), "of no constant"),
        (("%v2_v1 = vpop.ccrf",), "without a `vpush.ccrf`"),
        (("%23 = vwait.ge.trace [#allocation7], 1",), "unknown purpose"),
        (BARRIERS["v4"][1:], "none asks which it is"),
    ],
)
def test_other_meetings_are_refused(program_of, bundles, says):
    with pytest.raises(DumpError, match=says) as caught:
        program_of(dump("", *bundles))
    assert caught.value.hint
