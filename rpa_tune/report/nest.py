"""Loops named by their place in the nest: addresses differ between two schedules."""

from collections.abc import Iterable


def places(bounds: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """(first, last) address of a loop -> its place, in the order of addresses.

    `2.1` is the first loop in the second outermost one.
    """
    found: dict[tuple[int, int], str] = {}
    counts: list[int] = []  # loops so far at each depth of the nest that is open
    open_ends: list[int] = []
    for first, last in sorted(bounds, key=lambda ends: (ends[0], -ends[1])):
        while open_ends and open_ends[-1] < first:
            open_ends.pop()
        depth = len(open_ends)
        counts = [*counts[:depth], counts[depth] + 1] if depth < len(counts) else [*counts, 1]
        open_ends.append(last)
        found[first, last] = ".".join(map(str, counts[: depth + 1]))
    return found
