"""The parser: what it reads, and that what it cannot read is an error with file and line."""

import re

import pytest
from pure.llo.dump_text import LEGEND, dump

from rpa_tune.errors import DumpError
from rpa_tune.llo.opcodes import Op, Slot
from rpa_tune.llo.program import ALLOCATION_BITS, Term


def test_reads_slots_labels_and_depth(program_of):
    program = program_of(
        dump(
            "%v1_v0 = vld [vmem:[#allocation5_spill] sm:$0xff]  ;;  %v2_v1 = vadd.f32 %v1_v0, 1.0",
            ("LB", "%v3_v1 = vpow2.f32 %v2_v1", "Start region 4"),
        )
    )
    first, second = program.bundles
    assert first.slots[Slot.VLOAD] == first.slots[Slot.FILL] == first.slots[Slot.VALU] == 1
    assert second.slots[Slot.EUP] == second.slots[Slot.VALU] == 1
    assert second.label == "LB"
    assert second.is_entry


def test_vector_carries_take_a_slot_and_decide_nothing(program_of):
    # A division of a vector by a constant, v5e and v5p.
    program = program_of(
        dump(
            "%vm44_vm0 = vc.u32 %v36_v11, %v40_v19  ;;  %v46_v27 = vadd.s32 %v40_v19, %v36_v11",
            "%v45_v31 = vsel /*vm=*/%vm44_vm0, /*on_true_vy=*/1, /*on_false_vx=*/%v320_v30",
        )
    )
    assert [bundle.slots[Slot.VALU] for bundle in program.bundles] == [2, 1]
    assert not any(bundle.instructions for bundle in program.bundles)


def test_halves_of_a_wide_product_share_a_slot(program_of):
    # The same, v6e and v7x.
    program = program_of(
        dump(
            "%v2_v3 = vmul.u32.u64.low 3435973837, %v1_v0  ;;  %v3_v4 = vmul.u32.u64.high"
            " /*lhs_vy=*/3435973837, /*rhs_vx=*/%v1_v0, /*low=*/%v2_v3"
        )
    )
    assert program.bundles[0].slots[Slot.VALU] == 1


def test_orders_a_bundle_by_use(program_of):
    program = program_of(dump("%s2_s1 = sadd.s32 1, %s1_s0  ;;  %s1_s0 = smov 4"))
    assert [item.op for item in program.bundles[0].instructions] == [Op.MOV, Op.ADD]


def test_reads_addresses(program_of):
    program = program_of(
        dump("%s1_s0 = smov 3", "%s2_s1 = sld [smem:[#allocation7 + $0x10 + %s1_s0]]")
    )
    (term,) = program.bundles[1].instructions[0].terms
    assert term == Term((1 << ALLOCATION_BITS) + 16, 0)


def test_constants_are_signed(program_of):
    program = program_of(dump("%s1_s0 = sadd.s32 4294967168, %s9_s9"))
    assert program.bundles[0].instructions[0].terms[0].constant == -128


def test_resolves_branches(program_of):
    program = program_of(
        dump(
            "%1 = sbr.rel (%p1_p0) target = $region7",
            ("LB", "", "Start region 3"),
            "%2 = sbr.rel (!%p1_p0) target = $region3",
            ("PF", "", "Start/End empty region 7"),
            "%3 = sbr.rel (%p1_p0) target = $region9",
        )
    )
    branches = [item for b in program.bundles for item in b.instructions]
    assert [b.target for b in branches] == [3, 1, 5], "forward, back, out of the kernel"
    assert [b.negated for b in branches] == [False, True, False]


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        ("%s1_s0 = sfrobnicate.s32 1, 2", "unknown opcode `sfrobnicate.s32`"),
        ("%v1_v0 = vfrobnicate.f32 %v2_v1", "unknown opcode `vfrobnicate.f32`"),
        ("%1 = dma.hbm_to_moon %s1_s0, 4, %s2_s1, [#allocation3]", "unknown opcode"),
        ("%s1_s0 = sadd.s32 1, 2, 3", "3 operands"),
        ("%1 = dma.hbm_to_vmem %s1_s0, 4", "2 operands"),
        ("%s1_s0 = sld [smem:[#allocation7 * 4]]", "an address is a sum"),
        ("%s1_s0 = smov twelve", "cannot read operand `twelve`"),
        ("?!", "cannot read instruction"),
        ("%s1_s0 = sphi %s2_s1, %s3_s2", "phi outside of a label"),
    ],
)
def test_what_is_not_understood_names_file_and_line(program_of, bundle, says):
    with pytest.raises(DumpError, match=re.escape(says)) as caught:
        program_of(dump("", "", bundle))
    assert re.search(r"toy\.1-01-final_bundles\.txt:7$", caught.value.where)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no legend"),
        (LEGEND, "no bundle"),
        (LEGEND + "garbage\n" + dump("")[len(LEGEND) :], "text before the first bundle"),
        (dump("", "").replace("0x1", "0x2"), "follows"),
        (dump("%s1_s0 = smov 1").replace(" }", ""), "closing brace"),
        (
            dump("%1 = sbr.rel (%p1_p0) target = $region7", ("", "", "Start region 7")),
            "forward branch",
        ),
    ],
)
def test_a_changed_format_is_an_error(program_of, text, says):
    with pytest.raises(DumpError, match=says):
        program_of(text)


def test_a_missing_file_is_an_error(tmp_path):
    from rpa_tune.llo.parse import load_program

    with pytest.raises(DumpError, match="cannot read dump"):
        load_program(tmp_path / "nothing.txt")
