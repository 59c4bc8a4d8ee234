"""The bundles behind a branch that issue before it takes effect."""

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import Rates
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import Bundle, Instruction, Program


def printed_delay(program: Program, address: int, rates: Rates) -> int:
    """Delay bundles of a branch that the dump prints; the rest cost a cycle each all the same.

    Empty slots in front of the next region are left out by some libtpu versions, but for one. What
    is printed ends where the next region or label starts. That is not always marked, or a later
    region's start is: then it ends with the last empty bundles behind the end of a region, or with
    the last empty ones where that end is not marked either. Where no start is marked at all, it
    ends with the first empty bundles behind the end of a region.
    """
    bundles = program.bundles[address + 1 : address + 1 + rates.branch_delay]
    start = next((i for i, bundle in enumerate(bundles) if bundle.is_entry), None)
    bundles = bundles[:start]
    printed = _printed(bundles, is_start_marked=start is not None)
    if any(_branch(bundle) for bundle in bundles[:printed]):
        return _printed_before_branch(program.bundles[address], bundles)
    return printed


def _printed(bundles: tuple[Bundle, ...], *, is_start_marked: bool) -> int:
    """How many of the bundles behind a branch are its own, by regions and empty bundles."""
    exits = [distance for distance, bundle in enumerate(bundles, start=1) if bundle.is_exit]
    is_empty = [not any(bundle.slots) for bundle in bundles]
    printed = exits[-1] if exits else 1
    if is_start_marked or not exits:
        empty = (i for i in range(printed, len(bundles) + 1) if is_empty[i - 1])
        return max(empty, default=len(bundles))
    while printed < len(bundles) and not is_empty[printed]:
        printed += 1
    while printed < len(bundles) and is_empty[printed]:
        printed += 1
    return printed


def _printed_before_branch(branch: Bundle, bundles: tuple[Bundle, ...]) -> int:
    """Printed delay bundles of a branch where another branch comes before all could be.

    No branch stands in the shadow of another, so slots are left out, and what is printed ends with
    an empty one. It is the first behind the last instruction whose predicate is that the branch
    is not taken: such are moved into its shadow. All bundles where there is none.
    """
    item = _branch(branch)
    assert item is not None
    taken = (item.predicate, item.negated)
    for printed, bundle in enumerate(bundles, start=1):
        following = bundles[printed:]
        if _branch(bundle):
            break
        if not any(bundle.slots) and not any(
            (one.predicate, not one.negated) == taken for b in following for one in b.instructions
        ):
            return printed
    return len(bundles)


def _branch(bundle: Bundle) -> Instruction | None:
    """The branch of a bundle."""
    return next((item for item in bundle.instructions if item.op is Op.BRANCH), None)


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
