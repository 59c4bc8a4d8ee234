"""Bounds checks of the compiler, as each chip spells them: they pass inside and fail outside."""

import pytest
from pure.llo.dump_text import dump, operand

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import interpret
from rpa_tune.llo.machine import load_machine

RATES = rates_of(load_machine("v5e"))
SIZE = 256  # of a copy
V4 = "%s8_s6 = sand.u32 2147483647, %s3_s1"
V5E = (
    "%s4_s2 = sshll.u32 %s3_s1, 4  ;;  %s5_s3 = int_to_ptr.hbm [resolvable:$true] %s4_s2",
    "%s6_s4 = sshra.s32 {pointer}, 4  ;;  %s8_s6 = int_to_ptr.hbm [resolvable:$true] %s6_s4",
)
SPILLED = (
    "%1 = sst [smem:[#allocation2_spill]] %s5_s3",
    "%s7_s5 = sld [smem:[#allocation2_spill]]",
)
CHOSEN = ("%s9_s7 = scalar_select %p9_p9, %s1_s0, %s5_s3", "%s7_s5 = smov %s9_s7")


def checked(*address, start, length, compare="s32"):
    """A bounds check of a copy that begins `start` into an operand of `length`."""
    return dump(
        operand("%s1_s0", 2),
        f"%s3_s1 = scalar_lea.hbm %s1_s0, {start}",
        *address,
        f"%s11_s8 = scalar_lea.hbm %s8_s6, {SIZE}  ;;  %s12_s9 = scalar_lea.hbm %s1_s0, {length}",
        f"%p1_p1 = scmp.lt.{compare}.totalorder %s8_s6, %s1_s0",
        f"%p2_p2 = scmp.lt.{compare}.totalorder %s12_s9, %s11_s8",
        "%p3_p3 = por %p1_p1, %p2_p2",
        "%20 = shalt.err (%p3_p3) /* BoundsCheck 0 [deref of %s3] */",
    )


@pytest.mark.parametrize(
    ("address", "compare"),
    [
        ((V4,), "s32"),
        (tuple(line.format(pointer="%s5_s3") for line in V5E), "s32"),
        ((V5E[0], *SPILLED, V5E[1].format(pointer="%s7_s5")), "s32"),
        ((V5E[0], *CHOSEN, V5E[1].format(pointer="%s7_s5")), "s32"),
        (("%s8_s6 = smov %s3_s1",), "u32"),
    ],
    ids=["v4", "v5e", "v5e_spilled", "v5e_chosen", "v5p"],
)
@pytest.mark.parametrize("length", [1024, 1 << 28])
def test_a_bounds_check_passes_inside_an_array_and_fails_outside(
    program_of, address, compare, length
):
    inside = (0, 256, length - SIZE)
    for function in (interpret, run_fast):
        for start in inside:
            program = program_of(checked(*address, start=start, length=length, compare=compare))
            function(program, RATES, {}, max_bundles=99)
        for start in (length - SIZE + 1, (1 << 32) - 1):
            program = program_of(checked(*address, start=start, length=length, compare=compare))
            with pytest.raises(DumpError, match="BoundsCheck 0"):
                function(program, RATES, {}, max_bundles=99)


def test_a_number_that_is_no_pointer_is_shifted(program_of):
    program = program_of(
        dump(
            "%s1_s0 = smov 16",
            V5E[0].replace("%s3_s1", "%s1_s0"),
            "%s8_s6 = sshra.s32 %s1_s0, 4",
            "%p1_p1 = scmp.ne.s32.totalorder %s8_s6, 1",
            "%2 = shalt.err (%p1_p1) /* it was not shifted */",
        )
    )
    interpret(program, RATES, {}, max_bundles=9)
