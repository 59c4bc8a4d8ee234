"""Source lines of a schedule's instructions, as the compiler notes them when it is asked to.

`SOURCES_FLAG` makes libtpu write `/* loc("file.py":12:3 to :9) */` behind an instruction: the
innermost Python line that it comes from, without its callers. The instructions stay the same. Some
have no line: what the compiler makes by itself (spills, phis), and what it takes apart (exp2,
transposed pushes into a matrix unit). Neighbour: `profile.py` puts cycles to lines.

Source: observed with libtpu 0.0.42.1; 0.0.44, 0.0.48, 0.0.51 and 0.0.52 know the flag too.
"""

import re
from collections import Counter
from typing import NamedTuple

SOURCES_FLAG = "--xla_mosaic_enable_llo_source_annotations=true"
_PLACE = r"loc\((?:(?! :: | \*/)[^\n])*\)"
_NOTES = re.compile(
    rf" /\* {_PLACE}(?: :: {_PLACE})* \*/| :: {_PLACE}(?= )|(?<=/\* ){_PLACE}(?: :: {_PLACE})* :: "
)
_LINE = re.compile(r'loc\("([^"\n]+)":(\d+)')


class SourceLine(NamedTuple):
    """A line of Python.

    Attributes:
      file: Path as Python had it when the kernel was traced.
      line: From 1.
    """

    file: str
    line: int


def without_sources(text: str) -> str:
    """A schedule as the compiler writes it without `SOURCES_FLAG`."""
    return _NOTES.sub("", text) if "loc(" in text else text


def lines_of(bundle: str) -> Counter[SourceLine]:
    """How many instructions of a bundle's text come from which line."""
    places = (_LINE.search(part) for part in bundle.split(";;"))
    return Counter(SourceLine(place[1], int(place[2])) for place in places if place)
