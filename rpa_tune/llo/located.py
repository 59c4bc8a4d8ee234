"""Between which memories a copy is whose text does not say it: its pointers tell.

A register is written in one place, so it points where that place says. A word of SMEM that
registers are spilled to holds one after another: what is read back is what the stores left there
that can come before. Neighbours: `pointers.py` knows which operations make pointers.
"""

from collections.abc import Mapping

from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import NO_REGISTER, Bundle, Instruction, Term

# A branch takes effect so many bundles later at most, on any chip.
_MOST_DELAY = 8
_MOVES = (Op.MOV, Op.PHI, Op.SELECT)

_Memories = frozenset[str]
_NONE: _Memories = frozenset()
_Words = dict[int, _Memories]  # by constant address; a word that is missing holds no pointer


def has_lost_copy(bundle: Bundle) -> bool:
    """Whether it is not known between which memories one of its copies is."""
    return any(item.op is Op.COPY and not item.detail for item in bundle.instructions)


def located(bundles: list[Bundle], memories: Mapping[int, str]) -> list[Bundle]:
    """Bundles in which copies say between which memories they are, as far as pointers tell.

    What may point into two memories tells nothing.

    Args:
      bundles: Of a program, branches resolved.
      memories: By register, the memory of the pointers that instructions make.
    """
    found = {register: frozenset({memory}) for register, memory in memories.items()}
    before = _predecessors(bundles)
    after: list[_Words] = [{} for _ in bundles]
    is_new = True
    while is_new:
        is_new = False
        for number, bundle in enumerate(bundles):
            words = _joined([after[earlier] for earlier in before[number]])
            grown = _through(bundle, words, found)
            if grown or words != after[number]:
                after[number], is_new = words, True
    return [
        bundle._replace(instructions=tuple(_named(item, found) for item in bundle.instructions))
        if has_lost_copy(bundle)
        else bundle
        for bundle in bundles
    ]


def _predecessors(bundles: list[Bundle]) -> list[set[int]]:
    """By bundle, those after which it may come; more than really may, for branches are delayed."""
    before: list[set[int]] = [{number - 1} if number else set() for number in range(len(bundles))]
    for number, bundle in enumerate(bundles):
        for item in bundle.instructions:
            if item.op is Op.BRANCH and item.target < len(bundles):
                last = min(number + _MOST_DELAY, len(bundles) - 1)
                before[item.target].update(range(number, last + 1))
    return before


def _joined(states: list[_Words]) -> _Words:
    joined: _Words = {}
    for state in states:
        for word, memories in state.items():
            joined[word] = joined.get(word, _NONE) | memories
    return joined


def _through(bundle: Bundle, words: _Words, found: dict[int, _Memories]) -> bool:
    """Steps through a bundle: `words` are what it leaves; whether `found` has grown."""
    read, is_new = dict(words), False
    for item in bundle.instructions:
        if item.op is Op.STORE:
            if (word := _word(item.terms[0])) is not None:
                kept = read.get(word, _NONE) if item.predicate != NO_REGISTER else _NONE
                words[word] = kept | _memories(item.terms[1], found)
            continue
        if item.op is Op.LOAD:
            word = _word(item.terms[0])
            memories = _NONE if word is None else read.get(word, _NONE)
        elif item.op in _MOVES:
            values = item.terms[1:] if item.op is Op.SELECT else item.terms
            memories = _NONE.union(*(_memories(value, found) for value in values))
        else:
            continue
        if not memories <= found.get(item.result, _NONE):
            found[item.result] = found.get(item.result, _NONE) | memories
            is_new = True
    return is_new


def _named(item: Instruction, found: Mapping[int, _Memories]) -> Instruction:
    if item.op is not Op.COPY or item.detail:
        return item
    ends = [_memories(item.terms[i], found) for i in (0, 2)]
    is_known = all(len(memories) == 1 for memories in ends)
    return item._replace(detail="_to_".join(map(min, ends))) if is_known else item


def _memories(value: Term, found: Mapping[int, _Memories]) -> _Memories:
    """Where a value may point that is in one register."""
    is_register = value.constant == 0 and value.second == NO_REGISTER
    return found.get(value.first, _NONE) if is_register else _NONE


def _word(address: Term) -> int | None:
    """The word of SMEM that has an address, where the text says which."""
    return address.constant if address.first == NO_REGISTER else None
