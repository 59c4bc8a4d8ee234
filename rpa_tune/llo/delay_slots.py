"""The bundles behind a branch that issue before it takes effect."""

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import Rates
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import Program


def printed_delay(program: Program, address: int, rates: Rates) -> int:
    """Delay bundles of a branch that the dump prints; the rest cost a cycle each all the same.

    Empty slots in front of the next region are left out by some libtpu versions: what is printed
    ends where the next region or label starts.
    """
    for distance in range(1, rates.branch_delay + 1):
        following = address + distance
        if following >= len(program.bundles) or program.bundles[following].is_entry:
            return distance - 1
    return rates.branch_delay


def shadow_ends(program: Program, rates: Rates) -> dict[int, int]:
    """The last delay bundle of every branch, by the branch's address.

    Raises:
      DumpError: A branch stands in the shadow of another, which we have never seen.
    """
    ends: dict[int, int] = {}
    last = -1
    for address, bundle in enumerate(program.bundles):
        count = sum(item.op is Op.BRANCH for item in bundle.instructions)
        if count > 1 or (count and address <= last):
            raise DumpError("a branch in the shadow of another", where=program.where(address))
        if count:
            last = ends[address] = address + printed_delay(program, address, rates)
    return ends
