"""What the dumps of public kernels hold and those of our own do not."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pure.llo.dump_text import dump, operand, prefetch
from pure.llo.test_interpreter import RATES, _program, run_both, wait_for_granules

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import Direction, rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import interpret
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.opcodes import Slot

UINT32 = st.integers(0, 2**32 - 1)


def through_hbm(spill, reload, *, pointer="%s82_s2"):
    """Bundles that store `spill` to a spill slot in HBM, and load it into `reload` again.

    The compiler does so when the kernel leaves too little SMEM.
    """
    return (
        "%s80_s0 = smov [#allocation60_spill]  ;;  %s81_s1 = smov [#allocation61_spill]",
        f"%83 = sst [smem:[#allocation61_spill]] {spill}",
        "%84 = vsyncpa [#allocation62], 0  ;;  %s85_s2 = sshll.u32 %s80_s0, 4"
        "  ;;  %s82_s2 = int_to_ptr.hbm [resolvable:$true] %s85_s2",
        f"%86 = dma.smem_to_hbm /*smem=*/%s81_s1, 1, /*hbm=*/{pointer}, [#allocation62]",
        "%87 = dma.done.wait [#allocation62], 1 /* local-dma-wait */",
        "%88 = vsyncadd [#allocation62], 4294967295",
        "%89 = sfence",
        "%90 = vsyncpa [#allocation62], 1  ;;  %s91_s3 = smov [#allocation63_spill]",
        f"%92 = dma.hbm_to_smem /*hbm=*/{pointer}, 1, /*smem=*/%s91_s3, [#allocation64]",
        "%93 = dma.done.wait [#allocation64], 1 /* local-dma-wait */",
        f"{reload} = sld [smem:[%s91_s3]]",
    )


@pytest.mark.parametrize("pointer", ["%s80_s0", "%s82_s2"], ids=["address", "v5e pointer"])
def test_registers_spilled_to_hbm_come_back(program_of, pointer):
    bundles = through_hbm("%s70_s5", "%s71_s6", pointer=pointer)
    text = dump("%s70_s5 = smov 6", *bundles, *wait_for_granules("%s71_s6"))
    run = run_both(program_of(text))
    assert run.engines[Direction.READ][1] == 6 * RATES.granule_bytes
    assert run.engines[Direction.LOCAL][:2] == (2, 2 * RATES.granule_bytes)


def test_an_operand_whose_address_was_spilled_is_delivered(program_of):
    program = program_of(
        dump(
            operand("%s70_s5", 3),
            *through_hbm("%s70_s5", "%s71_s6"),
            "%s72_s7 = smov [#allocation5]",
            "%73 = dma.hbm_to_smem %s71_s6, 16, %s72_s7, [#allocation2]",
            "%74 = dma.done.wait [#allocation2], 16",
            "%s75_s8 = sld [smem:[#allocation5 + $0x2]]",
            *wait_for_granules("%s75_s8"),
        )
    )
    run = run_both(program, {3: np.array([0, 0, 11, 0], np.int32)})
    assert run.engines[Direction.READ][1] == 11 * RATES.granule_bytes
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match="operand 3"):
            function(program, RATES, {}, max_bundles=1000)


@pytest.mark.parametrize("source", ["[#allocation50]", "[#allocation61_spill + $0x40000]", "77"])
def test_scalars_from_elsewhere_are_refused(program_of, source):
    program = program_of(
        dump(
            f"%s70_s5 = smov {source}  ;;  %s72_s7 = smov [#allocation5]",
            "%73 = dma.hbm_to_smem %s70_s5, 16, %s72_s7, [#allocation2]",
        )
    )
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match="neither an operand nor a spill slot") as caught:
            function(program, RATES, {}, max_bundles=10)
        assert "bundle 0x1" in caught.value.where


def windows(offset, granules):
    """Bundles that bring a part of operand 3 to SMEM; its first word shows in granules."""
    return dump(
        operand("%s70_s5", 3, "s32[20]"),
        f"%s71_s6 = scalar_lea.hbm %s70_s5, {offset}  ;;  %s72_s7 = smov [#allocation5]",
        f"%73 = dma.hbm_to_smem %s71_s6, {granules}, %s72_s7, [#allocation2]",
        f"%74 = dma.done.wait [#allocation2], {granules}",
        "%s75_s8 = sld [smem:[#allocation5]]  ;;  %s76_s9 = sld [smem:[#allocation5 + $0x8]]",
        "%s77_s10 = sadd.s32 %s75_s8, %s76_s9",
        *wait_for_granules("%s77_s10"),
    )


@pytest.mark.parametrize(
    ("chip", "offset", "granules", "expected"),
    [
        ("v6e", 0, 1, 100),  # the ninth word is not copied
        ("v6e", 0, 2, 100 + 108),
        ("v6e", 1, 2, 108 + 116),
        ("v6e", 2, 16, 116),  # rounded up: the operand ends
        ("v6e", 3, 0, 0),
        ("v5e", 0, 2, 100 + 108),
    ],
)
def test_a_window_of_an_operand_is_delivered(program_of, chip, offset, granules, expected):
    rates = rates_of(load_machine(chip))
    values = np.arange(100, 120, dtype=np.int32)
    run = run_both(program_of(windows(offset, granules)), {3: values}, rates=rates)
    assert run.engines[Direction.READ][1] == expected * rates.granule_bytes


@pytest.mark.parametrize(("chip", "offset"), [("v6e", 3), ("v5e", 1)])
def test_a_window_behind_an_operand_is_refused(program_of, chip, offset):
    rates = rates_of(load_machine(chip))
    for function in (interpret, run_fast):
        with pytest.raises(DumpError, match="from behind operand 3") as caught:
            function(program_of(windows(offset, 1)), rates, {3: np.zeros(20, np.int32)},
                     max_bundles=100)  # fmt: skip
        assert "bundle 0x2" in caught.value.where


@settings(deadline=None, max_examples=25)
@given(a=UINT32, b=st.one_of(st.integers(0, 9), UINT32))
def test_divisions_queue_their_results(a, b):
    program = _program(
        *prefetch(),
        "%s1_s0 = sld [smem:[#allocation0]]  ;;  %s2_s1 = sld [smem:[#allocation0 + $0x1]]",
        "%100 = sdivrem.u32 %s1_s0, %s2_s1 /* kDivAndRem */",
        "%101 = sdivrem.u32 %s1_s0, %s2_s1 /* kRem */",
        "%102 = sdivrem.u32 %s1_s0, %s2_s1 /* kDiv */",
        "%s3_s2 = spop.drf %100  ;;  %s6_s2 = spop.drf %101  ;;  %s10_s2 = spop.drf %102",
        "%s4_s3 = spop.drf %100  ;;  %s7_s2 = smul.u32 %s3_s2, %s2_s1",
        # Quotient times divisor plus remainder is the dividend; both remainders are the same.
        "%s8_s2 = sadd.s32 %s7_s2, %s4_s3  ;;  %p1_p0 = scmp.eq.s32.totalorder %s4_s3, %s6_s2",
        "%p2_p1 = scmp.eq.s32.totalorder %s8_s2, %s1_s0"
        "  ;;  %p3_p2 = scmp.lt.u32.totalorder %s4_s3, %s2_s1",
        "%p4_p3 = pand %p1_p0, %p2_p1",
        "%p6_p5 = pand %p4_p3, %p3_p2  ;;  %p7_p6 = scmp.eq.s32.totalorder %s10_s2, %s3_s2",
        "%p5_p4 = pand %p6_p5, %p7_p6",
        "%s9_s2 = scalar_select %p5_p4, 5, 9",
        *wait_for_granules("%s9_s2"),
    )
    words = np.array([a, b, 0, 0], np.uint32).view(np.int32)
    granules = run_both(program, {0: words}).engines[Direction.READ][1] // RATES.granule_bytes
    assert granules == (5 if b else 9)


@pytest.mark.parametrize("way", ["hbm-to-vmem", "vmem-to-hbm"])
def test_copies_with_strides_in_smem(program_of, way):
    copy = (
        "%1 = dma.general (%p1_p0), /*src=*/%s3_s1, /*size_in_granules=*/40, /*dst=*/%s4_s2,"
        " /*dst_syncflagno=*/[#allocation5], /*src_syncflagno=*/[#allocation6],"
        " /*stridedescaddr=*/[#allocation7], /*overrides=*/%s5_s3, /*dst_syncflagno_1=*/0"
    )
    wait = "%2 = dma.done.wait (%p1_p0), [#allocation5], 40"
    predicate = "%p1_p0 = scmp.eq.s32.totalorder %s1_s0, {}"
    text = dump(predicate.format(0), f"{copy} /* {way} */", wait)
    run = run_both(program_of(text))
    moved = [num_bytes for _, num_bytes, _, _ in run.engines]
    assert moved == [40 * RATES.granule_bytes * (way == "hbm-to-vmem"),
                     40 * RATES.granule_bytes * (way == "vmem-to-hbm"), 0]  # fmt: skip
    skipped = run_both(program_of(text.replace("%s1_s0, 0", "%s1_s0, 1")))
    assert not any(num_copies for num_copies, _, _, _ in skipped.engines)
    with pytest.raises(DumpError, match="without a comment `FROM-to-TO`"):
        program_of(dump(predicate.format(0), copy, wait))


@pytest.mark.parametrize("way", [("hbm", "vmem"), ("vmem", "hbm")])
def test_strided_copies_of_xla_say_their_memories_by_pointers(program_of, way):
    source, destination = way
    pointers = (
        f"%s3_s1 = scalar_lea.{source} %s1_s0, 64",
        f"%s4_s2 = int_to_ptr.{destination} [resolvable:$false] %s2_s0",
    )
    copy = (
        "%1 = dma.general /*src=*/%s3_s1, /*size_in_granules=*/40, /*dst=*/%s4_s2,"
        " /*dst_syncflagno=*/[#allocation5], /*src_syncflagno=*/[#allocation6],"
        " /*stridedescaddr=*/[#allocation7], /*overrides=*/%s5_s3, /*dst_syncflagno_1=*/0"
    )
    wait = "%2 = dma.done.wait [#allocation5], 40"
    run = run_both(program_of(dump(*pointers, copy, wait)))
    moved = [num_bytes > 0 for _, num_bytes, _, _ in run.engines]
    assert moved == [way == ("hbm", "vmem"), way == ("vmem", "hbm"), False]
    with pytest.raises(DumpError, match="without a comment `FROM-to-TO`"):
        program_of(dump(pointers[0], copy, wait))
    # The destination was spilled and read back, then moved. The word holds other pointers before
    # and after; one that may have come last tells nothing.
    word = "[smem:[#allocation9_spill]]"
    other = f"%21 = sst {word} %s3_s1"
    spill, back = f"%20 = sst {word} %s4_s2", f"%s14_s4 = sld {word}"
    copy = copy.replace("%s4_s2", "%s15_s5")
    rest = ("%s15_s5 = smov %s14_s4", copy, wait)
    again = run_both(program_of(dump(*pointers, other, spill, back, *rest, other)))
    assert [num_bytes for _, num_bytes, _, _ in again.engines] == [
        num_bytes for _, num_bytes, _, _ in run.engines
    ]
    maybe = f"%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0  ;;  {other.replace('sst', 'sst (%p1_p0)')}"
    with pytest.raises(DumpError, match="without a comment `FROM-to-TO`"):
        program_of(dump(*pointers, spill, maybe, back, *rest))


@pytest.mark.parametrize(("jumps", "granules"), [(1, 7), (0, 9)])
def test_forward_branches_to_spill_code(program_of, jumps, granules):
    program = program_of(
        dump(
            f"%s1_s0 = smov 7  ;;  %p1_p0 = scmp.eq.s32.totalorder %s1_s0, {7 if jumps else 0}",
            "%60 = sbr.rel (%p1_p0) target = $region5",
            *[""] * 4,
            "%s2_s1 = smov 9",
            ("PF", "%s3_s2 = sphi %s1_s0, %s2_s1", "Start region 5 :: Start region 6"),
            *wait_for_granules("%s3_s2"),
        )
    )
    assert run_both(program).engines[Direction.READ][1] == granules * RATES.granule_bytes


def test_vector_phis_take_no_slot(program_of):
    program = program_of(dump(("LB", "%v1_v0 = vphi %v2_v0, %v3_v0 /* phi copy */", "")))
    assert not any(program.slot_total(slot) for slot in Slot)


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        (
            "%1 = sdivrem.u32 %s1_s0, 3 /* kMod */",
            "without a comment",
        ),
        ("%s2_s1 = spop.drf %9", "takes more results than a division has"),
        ("%s2_s1 = spop.drf %1  ;;  %s3_s1 = spop.drf %1", "takes more results"),
    ],
)
def test_divisions_that_are_not_understood(program_of, bundle, says):
    with pytest.raises(DumpError, match=re.escape(says)):
        program_of(dump("%1 = sdivrem.u32 %s1_s0, 3 /* kRem */", bundle))
