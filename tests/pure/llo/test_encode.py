"""Programs as arrays: what is kept, where blocks start, what a copy brings to scalar memory."""

import pytest
from pure.llo.dump_text import dump, prefetch

from rpa_tune.llo import encode as module
from rpa_tune.llo.encode import encode
from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.opcodes import Op

RATES = rates_of(load_machine("v6e"))
WAIT = "%61 = dma.done.wait [#allocation30], {}"


def ops(encoded):
    return [Op(row[module.OP]).name for row in encoded.rows]


def test_what_no_effect_depends_on_is_dropped(program_of) -> None:
    program = program_of(
        dump(
            "%s1_s0 = smov 5",
            "%s2_s0 = smul.u32 %s1_s0, 3",  # the wait's granules
            "%s3_s0 = sadd.s32 %s1_s0, 1",  # nothing
            "%s4_s0 = sadd.s32 %s3_s0, 1",  # nothing of it
            WAIT.format("%s2_s0"),
        )
    )
    assert ops(encode(program, RATES)) == ["MOV", "MUL", "WAIT"]


def test_predicates_are_kept_with_what_they_depend_on(program_of) -> None:
    program = program_of(
        dump(
            "%s1_s0 = smov 5",
            "%p2_p0 = scmp.lt.s32.totalorder %s1_s0, 6",
            "%s3_s0 = smov (!%p2_p0), 8",
            WAIT.format("%s3_s0"),
        )
    )
    encoded = encode(program, RATES)
    assert ops(encoded) == ["MOV", "LT", "MOV", "WAIT"]
    assert encoded.rows[2][module.NEGATED] == 1
    assert encoded.rows[2][module.PREDICATE] == encoded.rows[1][module.RESULT]
    # What is absent is the last register, which holds zero.
    zero = encoded.num_registers - 1
    assert zero == len(program.register_names)
    assert encoded.rows[0][module.PREDICATE] == -1
    assert encoded.rows[0][module.TERMS : module.TERMS + 3].tolist() == [5, zero, zero]


BRANCH, TARGET = "%50 = sbr.rel target = $region5", ("PF", "", "Start/End empty region 5")


def test_blocks_cover_all_bundles_once_and_say_who_follows(program_of) -> None:
    delay = RATES.branch_delay
    shadow, skipped = [WAIT.format(1)] * delay, WAIT.format(2)
    program = program_of(
        dump("%s1_s0 = smov 5", BRANCH, *shadow, skipped, "", TARGET, WAIT.format(3))
    )
    encoded = encode(program, RATES)
    first, length = encoded.blocks[:, module.FIRST], encoded.blocks[:, module.LENGTH]
    assert first[0] == 0
    assert (first[1:] == first[:-1] + length[:-1]).all()
    assert first[-1] + length[-1] == len(program.bundles)
    assert first.tolist()[1] == delay + 2  # behind the shadow
    assert encoded.blocks[:, module.NEXT].tolist() == [*range(1, len(first)), -1]
    rows = [range(b[module.ROWS], b[module.END]) for b in encoded.blocks]
    assert [i for block in rows for i in block] == list(range(len(encoded.rows)))
    for block, own in zip(encoded.blocks, rows, strict=True):
        offsets = encoded.rows[own, module.OFFSET]
        assert (offsets >= 0).all()
        assert (offsets < block[module.LENGTH]).all()


@pytest.mark.parametrize("printed", [0, 2])
def test_a_branch_says_its_block_and_the_delay_that_is_not_printed(program_of, printed) -> None:
    start = ("", "%s2_s0 = smov 3", "Start region 3")
    text = dump(BRANCH, *[WAIT.format(1)] * printed, start, "", TARGET, "", "")
    encoded = encode(program_of(text), RATES)
    (row,) = [row for row in encoded.rows if row[module.OP] == Op.BRANCH]
    missing, block = row[module.EXTRA] >> 32, (row[module.EXTRA] & 0xFFFFFFFF) - 1
    assert missing == RATES.branch_delay - printed
    assert encoded.blocks[block][module.FIRST] == printed + 3  # the target


def test_copies_into_scalar_memory_say_what_they_bring(program_of) -> None:
    program = program_of(dump(*prefetch(0, "#allocation0", granules=3),
                              *prefetch(1, "#allocation1", granules=5)))  # fmt: skip
    encoded = encode(program, RATES)
    assert sorted(encoded.delivered_granules.values()) == [3, 5]
    copies = [row for row in encoded.rows if row[module.OP] == Op.COPY]
    assert len(copies) == 2
    for row in copies:
        assert row[module.EXTRA] // module.NUM_KINDS == module.WORDS_IN
