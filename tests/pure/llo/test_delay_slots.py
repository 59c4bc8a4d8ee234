"""Which bundles behind a branch the dump prints as its shadow."""

import pytest
from pure.llo.dump_text import dump

from rpa_tune.errors import DumpError
from rpa_tune.llo.delay_slots import printed_delay, shadow_ends
from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.machine import load_machine

RATES = rates_of(load_machine("v6e"))
BRANCH = "%50 = sbr.rel target = $region5"  # there is none: it leaves the kernel
WORK = "%s2_s0 = smov 3"
END, START = ("", WORK, "End region 2"), ("", WORK, "Start region 3")


def padded(*bundles):
    return dump(BRANCH, *bundles, *[("", WORK, "Start region 7")] * 12)


@pytest.mark.parametrize(
    ("shadow", "printed"),
    [
        ([WORK, WORK, START], 2),  # the next region starts
        ([START], 0),
        ([END, WORK, "", "", WORK, WORK], 4),  # up to the empty ones behind the region's end
        ([END, START], 1),
        ([END, "", WORK, START], 2),  # that start is of a region further on
        ([WORK, "", WORK, START], 2),  # no end: up to the last empty one
    ],
    ids=["start", "at_once", "end", "end_and_start", "unmarked_start", "empty"],
)
def test_a_shadow_ends_where_the_next_region_does_not_reach(program_of, shadow, printed) -> None:
    program = program_of(padded(*shadow))
    assert printed_delay(program, 0, RATES) == printed
    assert shadow_ends(program, RATES)[0] == printed


def test_a_shadow_is_as_long_as_the_machines_delay_at_most(program_of) -> None:
    program = program_of(dump(BRANCH, *[WORK] * 20))
    assert RATES.branch_delay < 20
    assert printed_delay(program, 0, RATES) == RATES.branch_delay
    assert printed_delay(program, 0, RATES._replace(branch_delay=2)) == 2


def test_a_shadow_ends_before_the_next_branch(program_of) -> None:
    # v7x: regions that are not marked, and a wait for a load that looks like the shadow's end.
    branch = "%1 = sbr.rel (%p1_p0) target = $region5"
    own = "%s3_s1 = sadd.s32 (!%p1_p0), 1, %s2_s0"
    again = branch.replace("%1 ", "%2 ").replace("%p1", "%p2")
    end = ("", WORK, "End region 2")
    program = program_of(dump(branch, "", own, "", end, again, *[WORK] * 20))
    rates = RATES._replace(branch_delay=6)
    assert printed_delay(program, 0, rates) == 3
    assert shadow_ends(program, rates)[0] == 3
    assert printed_delay(program, 5, rates) == 6


def test_a_branch_in_a_shadow_is_refused_with_its_bundle(program_of) -> None:
    program = program_of(dump(BRANCH, WORK, BRANCH.replace("%50", "%51"), *[WORK] * 20))
    with pytest.raises(DumpError, match="a branch in the shadow of another") as caught:
        shadow_ends(program, RATES)
    assert "(bundle 0x2)" in caught.value.where
    apart = RATES.branch_delay + 1
    program = program_of(
        dump(BRANCH, *[WORK] * (apart - 1), BRANCH.replace("%50", "%51"), *[WORK] * 20)
    )
    assert list(shadow_ends(program, RATES)) == [0, apart]
