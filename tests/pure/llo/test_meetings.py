"""The parts of barriers, one by one; `test_two_cores.py` has whole programs."""

import pytest

from rpa_tune.llo.meetings import MeetingError, Meetings
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import NO_REGISTER, Instruction, Term


def test_v5p_receives_the_word_that_it_sends_in_order() -> None:
    meetings = Meetings()
    for vector, word in (("%v1", "77"), ("%v2", "99")):
        meetings.constant(vector, word)
        assert meetings.parts(Instruction(op=Op.NOP), "vpush.ccrf", f" {vector} ") == ()
    assert meetings.num_cores == 1
    for result, word in ((3, 77), (4, 99)):
        pop = Instruction(op=Op.MOV, result=result)
        assert meetings.parts(pop, "vpop.ccrf", "") == (pop._replace(terms=(Term(word),)),)
    assert meetings.num_cores == 2
    # What was received is a known word on the scalar side, too; other vectors are not.
    push = Instruction(op=Op.NOP, terms=(Term(0, first=3),))
    assert meetings.parts(push, "vpush", "") == (push,)
    assert [meetings.is_received(vector) for vector in (3, 4, 9)] == [True, True, False]


def test_v4_waits_and_gets_what_the_other_core_adds() -> None:
    meetings = Meetings()
    flag, count = Term(7), Term(1)
    wait = Instruction(op=Op.BARRIER, result=5, terms=(flag, count))
    barrier, signal = meetings.parts(
        wait, "vwait.ge.trace", "[#allocation7], 1 /* barrier-megacore-wait */"
    )
    assert (barrier.op, barrier.terms) == (Op.BARRIER, (Term(0),))
    assert (signal.op, signal.result, signal.terms) == (Op.SYNC_ADD, NO_REGISTER, (flag, count))
    assert meetings.num_cores == 2
    with pytest.raises(MeetingError, match="for an unknown purpose"):
        meetings.parts(wait, "vwait.ge.trace", "[#allocation7], 1")


def test_the_core_id_is_where_it_is_read() -> None:
    meetings = Meetings()
    load = Instruction(op=Op.LOAD, result=1, terms=(Term(40),))
    assert meetings.parts(load, "sld", "[smem:..] /* another id */") == (load,)
    assert meetings.core_id is None
    meetings.parts(load, "sld", "[smem:..] /* megacore core id :: core id */")
    assert meetings.core_id == 40


@pytest.mark.parametrize("text", ["%v3", "-1", "1.5", ""])
def test_only_whole_words_are_exchanged(text: str) -> None:
    meetings = Meetings()
    meetings.constant("%v1", text)
    with pytest.raises(MeetingError, match="of no constant"):
        meetings.parts(Instruction(op=Op.NOP), "vpush.ccrf", "%v1")


def test_a_word_that_nobody_sent_is_refused() -> None:
    with pytest.raises(MeetingError, match=r"without a `vpush\.ccrf`"):
        Meetings().parts(Instruction(op=Op.MOV, result=1), "vpop.ccrf", "")


def test_other_instructions_are_none_of_a_meetings_business() -> None:
    item = Instruction(op=Op.ADD, result=1, terms=(Term(1), Term(2)))
    assert Meetings().parts(item, "sadd.s32", "1, 2") == (item,)
