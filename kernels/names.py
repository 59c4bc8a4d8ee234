"""How people spell names, understood in one place: case, separators, and usual other names. No jax.

`find_name` answers with the known name that a word spells; `did_you_mean` is the hint when it
spells none. Chips, dtypes, families, models, workloads and traces all go through here, each with
its own list of other names.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

_NO_OTHERS: Mapping[str, str] = {}


def find_name(
    word: object, known: Iterable[str], others: Mapping[str, str] = _NO_OTHERS
) -> str | None:
    """The known name that `word` spells, or None.

    A name is spelt by itself, by one of its other names, and by either in another case or with
    other separators (`V6E`, `azure_conv`). Nothing else is guessed.

    Args:
      word: What a person wrote; None is returned for anything but text.
      known: The names.
      others: Other name -> known name.
    """
    names = list(known)
    if not isinstance(word, str):
        return None
    if word in names:
        return word
    bare = _bare(word)
    spelt = {name for name in names if _bare(name) == bare}
    spelt |= {name for other, name in others.items() if _bare(other) == bare and name in names}
    return spelt.pop() if bare and len(spelt) == 1 else None


def did_you_mean(
    word: object,
    known: Iterable[str],
    others: Mapping[str, str] = _NO_OTHERS,
    *,
    what: str = "",
) -> str:
    """A hint: the nearest known names if there are any, and all of them.

    Args:
      word: What a person wrote.
      known: The names.
      others: Other name -> known name.
      what: What the names are, in the plural; may be empty.
    """
    names = [str(name) for name in known]
    spellings = {_bare(name): name for name in names}
    spellings |= {_bare(other): name for other, name in others.items() if name in names}
    bare = _bare(str(word))
    # `v5` is as near to v5e as to v5p. A part of a name (`e4m3`) is too far from it for difflib.
    near = [_bare(name) for name in names if len(bare) > 1 and _bare(name).startswith(bare)][:3]
    near = near or difflib.get_close_matches(bare, spellings, n=1)
    near = near or [s for s in spellings if len(bare) > 2 and bare in s][:1]
    guess = f"did you mean {' or '.join(spellings[s] for s in near)}? " if near else ""
    return f"{guess}known{' ' if what else ''}{what}: {', '.join(names)}"


def _bare(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
