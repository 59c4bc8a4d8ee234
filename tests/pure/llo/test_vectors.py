"""Scalars that come from vectors decide nothing, or the kernel is refused."""

import numpy as np
import pytest
from pure.llo.dump_text import dump
from pure.llo.test_interpreter import run_both, wait_for_granules

from rpa_tune.errors import DumpError

TAKEN = ("%5 = vpush %v4_v0", "%s6_s1 = spop %5")


def test_a_value_that_goes_back_into_a_vector_decides_nothing(program_of):
    program = program_of(dump(*TAKEN, "%s7_s2 = sadd.f32 1.0, %s6_s1", "%v8_v1 = vstv %s7_s2"))
    assert run_both(program).end_cycle == 4


@pytest.mark.parametrize(
    "uses",
    [
        ("%p7_p0 = scmp.lt.f32.partialorder %s6_s1, 0.5",
         "%9 = sbr.rel (%p7_p0) target = $region5"),
        wait_for_granules("%s6_s1"),
        ("%9 = sst [smem:[#allocation2]] %s6_s1", "%s7_s2 = sld [smem:[#allocation2]]",
         *wait_for_granules("%s7_s2")),
        ("%9 = sst [smem:[%s1_s9]] %s6_s1", "%s7_s2 = sld [smem:[#allocation2 + $0x1]]",
         *wait_for_granules("%s7_s2")),
    ],
    ids=["branch", "copy", "through_smem", "through_any_word"],
)  # fmt: skip
def test_a_path_that_depends_on_a_vector_is_refused(program_of, uses):
    with pytest.raises(DumpError, match="depends on a value that it takes from a vector") as caught:
        program_of(dump(*TAKEN, *uses))
    assert caught.value.where.endswith(":5")  # the line that takes it
    assert "scalar prefetch" in caught.value.hint


def test_a_value_that_is_only_stored_decides_nothing(program_of):
    stored = "%9 = sst [smem:[#allocation2]] %s6_s1"
    run_both(program_of(dump(*TAKEN, stored, *wait_for_granules("4"))))


def test_floats_decide_by_their_values(program_of):
    bits = int(np.float32(2.5).view(np.int32))
    program = program_of(
        dump(
            f"%s1_s0 = smov {bits}",
            "%s2_s1 = smul.f32 3.0, %s1_s0",  # 7.5
            "%s3_s2 = scvt.f32.s32 %s2_s1",  # 8: the even one
            "%p4_p0 = scmp.lt.f32.partialorder %s2_s1, inf",
            "%s5_s3 = smov (%p4_p0), %s3_s2",
            *wait_for_granules("%s3_s2"),
        ).replace("(%p4_p0), %s3_s2", "(!%p4_p0, %s3_s2), 99")
    )
    assert run_both(program).engines[0][1] == 8 * 32
