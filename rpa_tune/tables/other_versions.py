"""What a row's evidence says of other jax and libtpu than those that it was made with.

Engines pin versions, and a row is made under one pair. `tables check --recompile --write` asks it
again under others, and the row then carries, for each: `{"jax": "0.11.2", "libtpu": "0.0.48",
"time_us": 141.2, "found": "best"}`. It is evidence, and takes no part in a look-up.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rpa_tune.known_versions import version_number
from rpa_tune.tables.values import check_names, check_range

# The row's configs are ahead of all that they were asked beside; another config is; there was none;
# one is refused, and there is no time.
BEST, OVERTAKEN, ALONE, UNFIT = FOUND = ("best", "overtaken", "alone", "unfit")
MAX_OTHER_VERSIONS = 16
_VERSION = re.compile(r"\d[\w.+]{0,31}")


def check_other_versions(data: Any) -> None:
    """Checks the field as a file has it.

    Raises:
      ValueError: It is none; the message names the part.
    """
    if not isinstance(data, list) or len(data) > MAX_OTHER_VERSIONS:
        raise ValueError(f"evidence.other_versions must be a list to {MAX_OTHER_VERSIONS}")
    for i, one in enumerate(data):
        what = f"evidence.other_versions[{i}]"
        check_names(what, one, {"jax", "libtpu", "time_us", "found"})
        for name in ("jax", "libtpu"):
            if not isinstance(one[name], str) or not _VERSION.fullmatch(one[name]):
                raise ValueError(f"{what}.{name}={one[name]!r:.40} is no version")
        if one["found"] not in FOUND:
            raise ValueError(f"{what}.found={one['found']!r:.40} is not one of {FOUND}")
        if one["time_us"] is not None:
            check_range(f"{what}.time_us", one["time_us"])
        if (one["time_us"] is None) != (one["found"] == UNFIT):
            raise ValueError(f"{what}.time_us={one['time_us']} with {one['found']}")


def with_found(
    there: Iterable[Mapping[str, Any]], found: Mapping[str, Any]
) -> tuple[dict[str, Any], ...]:
    """What a row carries, and one pair more or the same pair anew; in the order of releases."""
    pair = found["jax"], found["libtpu"]
    kept = [dict(one) for one in there if (one["jax"], one["libtpu"]) != pair]
    return tuple(
        sorted(
            [*kept, dict(found)],
            key=lambda one: (version_number(one["libtpu"]), version_number(one["jax"])),
        )
    )


def other_versions_text(found: Sequence[Mapping[str, Any]]) -> str:
    """On one line, for people; empty without any."""
    words = {
        BEST: "still best", OVERTAKEN: "another config is ahead", ALONE: "nothing to compare with",
        UNFIT: "does not fit",
    }  # fmt: skip
    parts = []
    for one in found:
        time = "" if one["time_us"] is None else f"{one['time_us']:,.1f} us, "
        parts.append(f"jax {one['jax']} with libtpu {one['libtpu']}: {time}{words[one['found']]}")
    return f"also asked under {'; '.join(parts)}" if parts else ""
