"""Opcodes of a schedule that `opcodes.yaml` does not have, each with examples.

`parse.py` stops at the first one. Whoever takes in a new libtpu wants all of them, as they stand in
the dump.
"""

from dataclasses import dataclass

from rpa_tune.llo.opcodes import meaning
from rpa_tune.llo.parse import HEAD, INSTRUCTION

MOST_EXAMPLES = 3
_EXAMPLE_CHARS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownOpcode:
    """One opcode that the table lacks.

    Attributes:
      mnemonic: As the dump spells it.
      count: How often it occurs.
      examples: (line of the file, instruction) of the first few.
    """

    mnemonic: str
    count: int
    examples: tuple[tuple[int, str], ...]


def unknown_opcodes(text: str) -> list[UnknownOpcode]:
    """The opcodes of a dump that are not in the table, most frequent first.

    What cannot be read as an instruction at all is left to the parser, which says so.

    Args:
      text: Of a `*-final_bundles.txt`.
    """
    counts: dict[str, int] = {}
    examples: dict[str, list[tuple[int, str]]] = {}
    heads = list(HEAD.finditer(text))
    for number, head in enumerate(heads):
        end = heads[number + 1].start() if number + 1 < len(heads) else len(text)
        body = text[head.end() : end]
        for part in body[: body.rfind("}")].split(";;"):
            match = INSTRUCTION.fullmatch(part)
            if match is None or meaning(match[2]) is not None:
                continue
            counts[match[2]] = counts.get(match[2], 0) + 1
            shown = examples.setdefault(match[2], [])
            if len(shown) < MOST_EXAMPLES:
                line = text.count("\n", 0, head.start()) + 1
                shown.append((line, " ".join(part.split())[:_EXAMPLE_CHARS]))
    ordered = sorted(counts, key=lambda mnemonic: (-counts[mnemonic], mnemonic))
    return [
        UnknownOpcode(mnemonic=name, count=counts[name], examples=tuple(examples[name]))
        for name in ordered
    ]
