"""Both interpreters on programs small enough to check by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pure.llo.dump_text import dump, operand, prefetch

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import Owner, rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import Interpreter, interpret
from rpa_tune.llo.machine import load_machine

RATES = rates_of(load_machine("v6e"))
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)


def run_both(program, operands=None, rates=RATES, max_bundles=1000):
    """Runs both interpreters, checks that they agree, returns the oracle's run."""
    slow = interpret(program, rates, operands or {}, max_bundles=max_bundles)
    fast = run_fast(program, rates, operands or {}, max_bundles=max_bundles)
    assert slow.end_cycle == fast.end_cycle
    assert (slow.executed == fast.executed).all()
    assert (slow.stall_cycles == fast.stall_cycles).all()
    assert slow.engines == fast.engines
    return slow


def wait_for_granules(register):
    """A copy of as many granules as a register says, so that the value shows in bytes."""
    return (
        f"%70 = dma.hbm_to_vmem [thread:$0] %s50_s0, {register}, %s51_s0, [#allocation30]",
        f"%71 = dma.done.wait [#allocation30], {register}",
    )


BINARY = {
    "sadd.s32": lambda a, b: a + b,
    "ssub.s32": lambda a, b: a - b,
    "smul.u32": lambda a, b: a * b,
    "smulhi.u32": lambda a, b: (a % 2**32) * (b % 2**32) // 2**32,
    "sand.u32": lambda a, b: a & b,
    "sor.u32": lambda a, b: a | b,
    "sxor.u32": lambda a, b: a ^ b,
    "smin.s32": min,
    "smax.s32": max,
    "smin.u32": lambda a, b: min(a % 2**32, b % 2**32),
    "sshll.u32": lambda a, b: a << (b & 31),
    "sshrl.u32": lambda a, b: (a % 2**32) >> (b & 31),
    "sshra.s32": lambda a, b: a >> (b & 31),
}


@settings(deadline=None, max_examples=25)
@given(a=INT32, b=INT32)
def test_arithmetic_wraps_like_int32(a, b):
    program = _program(
        *prefetch(),
        "%s1_s0 = sld [smem:[#allocation0]]  ;;  %s2_s1 = sld [smem:[#allocation0 + $0x1]]",
        *(f"%s1{i:02d}_s0 = {op} %s1_s0, %s2_s1" for i, op in enumerate(BINARY)),
        *(
            f"%3{i} = sst [smem:[#allocation40 + ${i:#x}]] %s1{i:02d}_s0"
            for i in range(len(BINARY))
        ),
    )
    machine = Interpreter(program, RATES, {0: np.array([a, b, 0, 0], np.int32)})
    machine.run(1000)
    base = (program.allocation_names.index("#allocation40") + 1) << 18
    for i, function in enumerate(BINARY.values()):
        expected = (function(a, b) + 2**31) % 2**32 - 2**31
        assert machine.smem[base + i] == expected, list(BINARY)[i]


@settings(deadline=None, max_examples=25)
@given(a=INT32, b=INT32, op=st.sampled_from(sorted(BINARY)))
def test_compiled_arithmetic_equals_the_oracle(a, b, op):
    # The value decides how many granules a copy has, so a difference shows in bytes.
    program = _program(
        *prefetch(),
        "%s1_s0 = sld [smem:[#allocation0]]  ;;  %s2_s1 = sld [smem:[#allocation0 + $0x1]]",
        f"%s3_s0 = {op} %s1_s0, %s2_s1",
        "%s4_s0 = sand.u32 1048575, %s3_s0",
        *wait_for_granules("%s4_s0"),
    )
    run = run_both(program, {0: np.array([a, b, 0, 0], np.int32)})
    expected = (BINARY[op](a, b) & 1048575) * RATES.granule_bytes
    assert run.engines[0][1] == expected


def _program(*bundles):
    """Parses bundles outside of a fixture, for hypothesis."""
    import tempfile
    from pathlib import Path

    from rpa_tune.llo.parse import load_program

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy-final_bundles.txt"
        path.write_text(dump(*bundles))
        return load_program(path)


LOOP = (
    *prefetch(),
    "%s1_s0 = sld [smem:[#allocation0]]  ;;  %s2_s1 = smov 0",
    ("LB", "%s3_s2 = sphi %s2_s1, %s4_s3  ;;  %s4_s3 = sadd.s32 1, %s3_s2", "Start region 5"),
    "%p1_p0 = scmp.ge.s32.totalorder %s4_s3, %s1_s0",
    "%60 = sbr.rel (!%p1_p0) target = $region5",
    "",
    "",
    "",
    "",
    *wait_for_granules("%s4_s3"),
)


@pytest.mark.parametrize("trips", [1, 2, 57])
def test_loops_run_as_often_as_the_data_say(program_of, trips):
    run = run_both(program_of(dump(*LOOP)), {0: np.array([trips, 0, 0, 0], np.int32)})
    assert run.executed[5] == trips
    assert run.entered[5] == 1
    assert run.engines[0][1] == trips * RATES.granule_bytes


def test_endless_loops_are_errors(program_of):
    program = program_of(dump(*LOOP))
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match="did not end within 100 bundles"):
            function(program, RATES, {0: np.full(4, 10**9, np.int32)}, max_bundles=100)


def test_phis_of_a_bundle_read_before_they_write(program_of):
    swap = "%s3_s2 = sphi %s1_s0, %s4_s3  ;;  %s4_s3 = sphi %s2_s1, %s3_s2"
    program = program_of(
        dump(
            "%s1_s0 = smov 1  ;;  %s2_s1 = smov 2  ;;  %s5_s4 = smov 0",
            ("LB", swap + "  ;;  %s6_s5 = sphi %s5_s4, %s7_s6", "Start region 5"),
            "%s7_s6 = sadd.s32 1, %s6_s5  ;;  %p1_p0 = scmp.ge.s32.totalorder %s6_s5, 2",
            "%60 = sbr.rel (!%p1_p0) target = $region5",
            *[""] * 4,
            *wait_for_granules("%s3_s2"),
        )
    )
    # Three trips swap twice, so the first value is back.
    assert run_both(program).engines[0][1] == RATES.granule_bytes


@pytest.mark.parametrize(("jumps", "granules"), [(1, 7), (0, 9)])
def test_phis_at_forward_merges(program_of, jumps, granules):
    program = program_of(
        dump(
            f"%s1_s0 = smov 7  ;;  %p1_p0 = scmp.eq.s32.totalorder %s1_s0, {7 if jumps else 0}",
            "%60 = sbr.rel (%p1_p0) target = $region5",
            *[""] * 4,
            "%s2_s1 = smov 9",
            ("PF", "%s3_s2 = sphi %s1_s0, %s2_s1", "Start/End empty region 5"),
            *wait_for_granules("%s3_s2"),
        )
    )
    assert run_both(program).engines[0][1] == granules * RATES.granule_bytes


def num_slots_run(program_of, *shadow, before=()):
    """Delay slots that a jump on v7x executes, from its other cycles; one loads 3 into a register.

    Args:
      program_of: The fixture.
      shadow: Bundles behind the branch: its slots, and code that loads 4 if it is run.
      before: Bundles between the comparison and the branch.
    """
    rates = rates_of(load_machine("v7x"))
    program = program_of(
        dump(
            "%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0",
            *before,
            "%60 = sbr.rel (%p1_p0) target = $region5",
            *shadow,
            ("PF", "", "Start/End empty region 5"),
            *wait_for_granules("%s2_s0"),
        )
    )
    run = run_both(program, rates=rates)
    assert run.engines[0][1] == 3 * rates.granule_bytes, "the slot ran, the code behind did not"
    return rates.branch_delay - run.stall_cycles[1 + len(before), Owner.SCALAR]


def test_delay_slots_execute_and_left_out_ones_cost_a_cycle(program_of):
    shadow = ("%s2_s0 = smov 3", ("", "%s2_s0 = smov 4", "Start region 3"))
    assert num_slots_run(program_of, *shadow) == 1


def test_delay_slots_end_with_their_region_where_the_next_has_no_mark(program_of):
    shadow = (
        ("", "%s2_s0 = smov 3", "End region 3"),
        "%s3_s1 = smov 5",  # of the next region, taken into the shadow
        "",
        *["%s2_s0 = smov 4"] * 4,
    )
    assert num_slots_run(program_of, *shadow) == 3


def test_delay_slots_end_with_empty_ones_where_neither_region_has_a_mark(program_of):
    shadow = (
        "%s2_s0 = smov 3",
        "",
        "%s4_s1 = smov 4  ;;  %61 = dma.done.wait [#allocation30], 9",  # nobody copies
        ("", "%s2_s0 = smov 4", "Start region 116"),
        "",
    )
    before = ("", "%s8_s8 = smov 7", "End region 2")
    assert num_slots_run(program_of, *shadow, before=[before]) == 2


def test_empty_delay_slots_may_stand_between_others(program_of):
    shadow = ("", "%s2_s0 = smov 3", "", ("", "%s2_s0 = smov 4", "Start region 9"))
    assert num_slots_run(program_of, *shadow) == 3


def test_selects_and_predicates(program_of):
    program = program_of(
        dump(
            "%s1_s0 = smov 5  ;;  %p1_p0 = scmp.lt.s32.totalorder %s1_s0, 6",
            "%s2_s0 = smov (%p1_p0, %s1_s0), 8  ;;  %s3_s0 = smov (!%p1_p0, %s1_s0), 8",
            "%s4_s0 = scalar_select %p1_p0, %s2_s0, 1  ;;  %s5_s0 = sadd.s32 %s4_s0, %s3_s0",
            "%s5_s0 = smov (!%p1_p0), 100",
            *wait_for_granules("%s5_s0"),
        )
    )
    assert run_both(program).engines[0][1] == (8 + 5) * RATES.granule_bytes


def test_a_wait_that_never_ends_names_flag_and_bundle(program_of):
    program = program_of(dump("", "%1 = dma.done.wait [#allocation3 + $0x2], 64"))
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match=r"deadlock: .*#allocation3 \+ 2") as caught:
            function(program, RATES, {}, max_bundles=10)
        assert "bundle 0x1" in caught.value.where


def test_a_halt_is_an_error(program_of):
    text = "%1 = shalt.err (%p1_p0) /* BoundsCheck 0 [deref] of /*hbm=*/%s1\nhlo: toy\n */"
    program = program_of(dump("%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0", text))
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match="fails: BoundsCheck 0") as caught:
            function(program, RATES, {}, max_bundles=10)
        assert "(bundle 0x1)" in caught.value.where
        assert "the simulator gets an address wrong" in caught.value.hint
        assert "disable_bounds_checks" in caught.value.hint
    assert run_both(program_of(dump("%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 1", text)))


def test_an_operand_that_is_not_given_is_named(program_of):
    program = program_of(dump(*prefetch(index=3)))
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match=r"operand 3 \(s32\[4\]\) is read"):
            function(program, RATES, {0: np.zeros(4, np.int32)}, max_bundles=10)


def test_scalar_operands_come_by_value(program_of):
    text = operand("%s1_s0", 0, shape="s32[1]", space="<no memory space>")
    program = program_of(dump(text, *wait_for_granules("%s1_s0")))
    run = run_both(program, {0: np.array([12], np.int32)})
    assert run.engines[0][1] == 12 * RATES.granule_bytes


def test_branches_in_each_others_shadow_are_refused(program_of):
    branch = "%60 = sbr.rel (%p1_p0) target = $region5"
    program = program_of(dump("%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0", branch, branch, ""))
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match="shadow"):
            function(program, RATES, {}, max_bundles=10)


def test_large_smem_tables(program_of):
    bundles = list(prefetch(granules=7500))
    bundles.append("%s1_s0 = sld [smem:[#allocation0 + $0xea5f]]")
    program = program_of(dump(*bundles, *wait_for_granules("%s1_s0")))
    table = np.zeros(60_000, np.int32)
    table[-1] = 5
    assert run_both(program, {0: table}).engines[0][1] == 5 * RATES.granule_bytes
