"""Pointers, as dumps spell them: addresses that the compiler shifts, and the memories they are in.

A pointer into VMEM, and on v5e one into HBM, is an address shifted left by `_SHIFT`. The address
that we make up for an allocation does not fit a word when it is shifted, so pointers stay
addresses: the shift that makes one does nothing, and neither does the shift back, which the bounds
checks of v5e start with. Elsewhere the checks of VMEM add to pointers; then they allow a little
more here than on the chip, and never less.
"""

from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import NO_REGISTER, Bundle, Instruction, Term

_SHIFT = Term(4)
_SHIFTED_MEMORIES = ("hbm", "vmem")
_SHIFTS_BACK = (Op.SHR_ARITHMETIC, Op.SHR_LOGICAL)
_CARRIERS = (Op.MOV, Op.PHI, Op.SELECT, Op.LOAD, Op.STORE)

# Where a pointer may be: a register, or a word of SMEM that has a constant address.
_Place = tuple[str, int]
_NOWHERE: _Place = ("nowhere", 0)


class Pointers:
    """Reads the pointers of one dump.

    Attributes:
      memories: By register, the memory that it points into.
    """

    def __init__(self) -> None:
        self.memories: dict[int, str] = {}
        self._shifted: dict[int, Term] = {}
        self._pointers: set[_Place] = set()

    def read(self, item: Instruction, mnemonic: str) -> Instruction:
        """The instruction; of an address instead of a pointer where it makes one."""
        base, _, memory = mnemonic.rpartition(".")
        if base in ("scalar_lea", "int_to_ptr"):
            self.memories[item.result] = memory
        if item.op is Op.SHL and item.terms[1] == _SHIFT:
            self._shifted[item.result] = item.terms[0]
        elif base == "int_to_ptr" and memory in _SHIFTED_MEMORIES:
            address = self._shifted.get(item.terms[0].first)
            if address is not None:
                self._pointers.add(("register", item.result))
                return item._replace(terms=(address,))
        return item

    def shifted_back(self, bundles: list[Bundle]) -> list[Bundle]:
        """Bundles in which a pointer that is shifted back stays the address that it is."""
        everything = [item for bundle in bundles for item in bundle.instructions]
        if not any(_is_shift_back(item) for item in everything):
            return bundles
        self._follow([_move(item) for item in everything if item.op in _CARRIERS])
        return [
            bundle._replace(instructions=tuple(map(self._plain, bundle.instructions)))
            if any(_is_shift_back(item) for item in bundle.instructions)
            else bundle
            for bundle in bundles
        ]

    def _plain(self, item: Instruction) -> Instruction:
        """A shift back of a pointer as a move."""
        if not _is_shift_back(item) or _place(item.terms[0]) not in self._pointers:
            return item
        return item._replace(op=Op.MOV, terms=item.terms[:1])

    def _follow(self, moves: list[tuple[set[_Place], _Place]]) -> None:
        """Finds where pointers get to: other registers, and words that registers are spilled to."""
        count = -1
        while count != len(self._pointers):
            count = len(self._pointers)
            self._pointers.update(to for sources, to in moves if sources & self._pointers)
            self._pointers.discard(_NOWHERE)


def _move(item: Instruction) -> tuple[set[_Place], _Place]:
    """The places that an instruction may take its value from, and the one that it puts it in."""
    if item.op is Op.STORE:
        return {_place(item.terms[1])}, _word(item.terms[0])
    if item.op is Op.LOAD:
        return {_word(item.terms[0])}, ("register", item.result)
    values = item.terms[1:] if item.op is Op.SELECT else item.terms
    return {_place(value) for value in values}, ("register", item.result)


def _is_shift_back(item: Instruction) -> bool:
    return item.op in _SHIFTS_BACK and item.terms[1] == _SHIFT


def _place(value: Term) -> _Place:
    """The register that a value is in."""
    is_register = value.constant == 0 and value.second == NO_REGISTER
    return ("register", value.first) if is_register else _NOWHERE


def _word(address: Term) -> _Place:
    """The word of SMEM that has an address, where the text says which."""
    return ("word", address.constant) if address.first == NO_REGISTER else _NOWHERE
