"""Scalars that come from vectors: their values are not known here.

`vpush` takes one lane of a vector, `spop` brings it to a scalar register: a sum, a maximum, or what
has no scalar instruction (`1 / x`, `exp`). Mostly it goes back into a vector and decides nothing;
then any value will do, and it is zero here. A kernel whose path depends on one is refused.
"""

from collections.abc import Iterable

from rpa_tune.errors import DumpError
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import ALLOCATION_BITS, NO_REGISTER, Instruction, Program, Term

# What decides the path and the times. Not a check that halts: it decides nothing where it holds.
_DECIDES = (Op.BRANCH, Op.COPY, Op.WAIT, Op.SYNC_ADD, Op.DELAY, Op.BARRIER)
_UNKNOWN_ALLOCATION = 0


def check_path(program: Program, data: dict[int, int]) -> None:
    """Refuses a program whose path depends on a value of a vector.

    Args:
      program: Parsed.
      data: Registers with such a value, and the line of the dump that takes it.

    Raises:
      DumpError: It does; says where the value is taken.
    """
    if not data:
        return
    items = [item for bundle in program.bundles for item in bundle.instructions]
    deciding = _deciding_registers(items)
    for register, line in data.items():
        if register in deciding:
            raise DumpError(
                "the kernel's path depends on a value that it takes from a vector",
                where=f"{program.path}:{line}",
                hint="only scalars are simulated: what decides a branch, a loop's trips, a copy's "
                "size or whether it is made must come from scalar prefetch or SMEM, and be "
                "computed without division, exp and the like of floats",
            )


def _deciding_registers(items: list[Instruction]) -> set[int]:
    """Registers that the path depends on, through SMEM too."""
    makers: dict[int, list[Instruction]] = {}
    stores: dict[int, list[Instruction]] = {}
    waiting: list[int] = []
    for item in items:
        if item.op is Op.STORE:
            stores.setdefault(_allocation(item.terms[0]), []).append(item)
        elif item.op in _DECIDES:
            waiting += _decides(item)
        elif item.result != NO_REGISTER:
            makers.setdefault(item.result, []).append(item)
    found: set[int] = set()
    while waiting:
        register = waiting.pop()
        if register in found:
            continue
        found.add(register)
        for item in makers.get(register, ()):
            waiting += _registers(item.predicate, item.terms)
            if item.op is Op.LOAD:
                for store in _stores_to(stores, _allocation(item.terms[0])):
                    waiting += _registers(store.predicate, store.terms)
    found.discard(NO_REGISTER)
    return found


def _decides(item: Instruction) -> list[int]:
    """Registers that an effect depends on; the addresses of a copy matter only in SMEM."""
    terms: Iterable[Term] = item.terms
    if item.op is Op.COPY and "smem" not in item.detail:
        terms = (item.terms[1], item.terms[3])
    return _registers(item.predicate, terms)


def _registers(predicate: int, terms: Iterable[Term]) -> list[int]:
    return [predicate, *(register for term in terms for register in (term.first, term.second))]


def _allocation(address: Term) -> int:
    """The number of the allocation that an address is in, from 1; 0 where the text does not say."""
    return address.constant >> ALLOCATION_BITS


def _stores_to(stores: dict[int, list[Instruction]], allocation: int) -> list[Instruction]:
    """Stores that may write what is loaded from an allocation; once each."""
    if allocation == _UNKNOWN_ALLOCATION:
        found = [item for items in stores.values() for item in items]
        stores.clear()
        return found
    return stores.pop(allocation, []) + stores.pop(_UNKNOWN_ALLOCATION, [])
