"""Commands that the documents show, with the output that they show for them.

A code block is a scenario when one of its lines is a command: a line that starts with `$ `, or in
a block without such lines one that starts with `rpa-tune`. What follows a `$ ` command up to the
next one is its output.

How output is compared: the document's lines must come in the real output, in this order. `...`
stands for anything, as a line of its own for any lines. Figures, digests, bars and the width of
columns do not count, because they change with every kernel, machine and compiler; words do. Where
lines of real output lie between two lines of a document that has no `...` there, the document is
out of date.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"),
     *ROOT.glob("rpa_tune/*/README.md"), *ROOT.glob("benchmarks/*.md")]
)  # fmt: skip
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BARS = re.compile(r"[\u2500-\u259f]+")
_DIGEST = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{16,64}\b")
_FIGURE = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")
_GAP = "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command and its output as documented; None when the document shows none."""

    command: str
    output: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """The commands of one code block, to be run one after the other in one shell."""

    document: str
    line: int
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The document and the first command up to its options, three words at least."""
        words = [word for word in self.steps[0].command.split() if "=" not in word]
        options = (i for i, word in enumerate(words) if word.startswith("-") or word == "#")
        return f"{self.document}: {' '.join(words[: max(3, min(next(options, 4), 4))])}"


def scenarios() -> list[Scenario]:
    """Of all documents, in their order."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for block in _BLOCK.finditer(text):
            if steps := _steps(block[2].splitlines()) if block[1] in ("", "sh") else []:
                line = text.count("\n", 0, block.start()) + 1
                document = str(path.relative_to(ROOT))
                found.append(Scenario(document=document, line=line, steps=tuple(steps)))
    return found


def _steps(lines: list[str]) -> list[Step]:
    if not any(line.startswith("$ ") for line in lines):
        commands = [line for line in lines if line.startswith("rpa-tune ")]
        return [Step(command=line, output=None) for line in commands]
    steps: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif steps:
            steps[-1][1].append(line)
    return [Step(command=command, output=tuple(output)) for command, output in steps]


def plain(line: str) -> str:
    """A line without what does not count."""
    text = _DIGEST.sub("#", _BARS.sub(" ", line))
    return " ".join(_FIGURE.sub("#", text).split())


def difference(documented: tuple[str, ...], real: list[str]) -> str:
    """What the document says and the output does not, or the other way round; empty if nothing."""
    wanted = [text for line in documented if (text := plain(line))]
    lines = [text for line in real if (text := plain(line))]
    text = "".join(f"{line}\n" for line in lines)
    if re.fullmatch("".join(map(_pattern, wanted)), text):
        return ""
    at, may_skip = 0, False  # the first place where they part, as far as that can be told
    for line in wanted:
        if line == _GAP:
            may_skip = True
            continue
        alike = (i for i in range(at, len(lines)) if re.fullmatch(_pattern(line), lines[i] + "\n"))
        found = next(alike, None)
        if found is None:
            return f"the output has no line (any more) like: {line}"
        if found > at and not may_skip:
            return f"the document lacks a line like: {lines[at]}"
        at, may_skip = found + 1, False
    return f"the document lacks a line like: {lines[at] if at < len(lines) else lines[-1]}"


def _pattern(line: str) -> str:
    """A documented line as a regular expression for one of the output, or for any of them."""
    if line == _GAP:
        return r"(?:.*\n)*?"
    return ".*".join(map(re.escape, line.split(_GAP))) + r"\n"
