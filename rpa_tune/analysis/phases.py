"""Phases of a kernel: what its bundles are for, by the source lines that they come from.

What can be proved, and how:

* Copies and waits say by their opcode what they are: `prefetch` (HBM to VMEM), `write` (VMEM to
  HBM), `wait` (stalls for copies and flags).
* Other instructions belong to the function that holds their source line. For our kernels
  `_FUNCTIONS` and `_FILES` say which phase that is; of other kernels the function's name is the
  phase.
* The compiler names the innermost line only, so that a helper which two phases share counts as the
  helper. It names none for what it takes apart. In our kernels a matrix push of transposed keys is
  such a thing (`qk`), and so is exp2 (`softmax`): there the opcode decides.
"""

import ast
import functools
from collections import Counter
from pathlib import Path

from rpa_tune.llo.engines import Direction, Owner, direction_of
from rpa_tune.llo.opcodes import Op, Slot
from rpa_tune.llo.profile import Profile, Sources
from rpa_tune.llo.program import Bundle, Program
from rpa_tune.llo.sources import SourceLine
from rpa_tune.llo.work import work_of

WAIT, PREFETCH, WRITE = "wait", "prefetch", "write"
_FOLDER = "kernels"  # of our kernels, in a checkout; installed it is `rpa_kernels`
_FUNCTIONS = {
    "qk": ("qk", "scale_q"),
    "softmax": ("softmax", "softmax_step", "exponentials", "mask", "edge_scores", "merge_factors"),
    "pv": ("pv", "_product"),
    PREFETCH: ("start_fetch", "start_fetch_new", "_fetch", "_in_copies"),
    WAIT: ("wait_fetch", "wait_first", "wait_send", "wait_write", "wait_writes", "_wait_sent"),
    WRITE: (
        "start_send", "start_write", "start_writes", "put_new", "put_tokens", "_put_tile",
        "_put_token", "store_words", "_out_copies",
    ),
    "unpack": ("unpack", "unpack_tile", "unpack_tokens", "load_kv", "load"),
}  # fmt: skip
_FILES = {
    "pages.py": PREFETCH, "packed.py": "unpack", "lane_pages.py": "unpack",
    "latent_rows.py": "unpack", "online_softmax.py": "softmax", "lane_ops.py": "softmax",
    "mask.py": "softmax", "window.py": "softmax", "walk.py": "walk", "runs.py": "walk",
    "q_blocks.py": "queries and outputs", "seq_blocks.py": "queries and outputs",
}  # fmt: skip
_PHASE_OF = {name: phase for phase, names in _FUNCTIONS.items() for name in names}
_STARTS = {Direction.READ: PREFETCH, Direction.WRITE: WRITE}


@functools.cache
def _functions(file: str) -> tuple[tuple[int, int, str], ...]:
    """(first line, last line, name) of each function of a file; none where it is not there."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return tuple(
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.walk(tree) if isinstance(node, kinds)
    )  # fmt: skip


@functools.cache
def function_of(line: SourceLine) -> str:
    """The innermost named function that holds a line; the file's name where that is not known."""
    inside = [one for one in _functions(line.file) if one[0] <= line.line <= one[1]]
    named = [one for one in inside if one[2] != "_"]
    return max(named)[2] if named else Path(line.file).name


@functools.cache
def is_ours(file: str) -> bool:
    """Whether a file is one of our kernels'."""
    return any(part in (_FOLDER, "rpa_kernels") for part in Path(file).parts[-3:-1])


@functools.cache
def phase_of(line: SourceLine) -> str:
    """The phase of a line; see the top of this file."""
    function = function_of(line)
    if not is_ours(line.file):
        return function
    return _PHASE_OF.get(function) or _FILES.get(Path(line.file).name, "control")


def bundle_labels(program: Program, sources: Sources) -> tuple[str, ...]:
    """The phase of most of each bundle's instructions; empty where none is known."""
    ours = any(is_ours(line.file) for lines in sources for line in lines)
    return tuple(
        _label(bundle, lines, ours=ours)
        for bundle, lines in zip(program.bundles, sources, strict=True)
    )


def _label(bundle: Bundle, lines: Counter[SourceLine], *, ours: bool) -> str:
    for item in bundle.instructions:
        if item.op is Op.COPY and (phase := _STARTS.get(direction_of(item.detail))):
            return phase
    phases: Counter[str] = Counter()
    for line, count in lines.items():
        phases[phase_of(line)] += count
    if ours and not phases:
        if bundle.slots[Slot.MXU]:
            return "qk"
        if bundle.slots[Slot.EUP]:
            return "softmax"
    return phases.most_common(1)[0][0] if phases else ""


def cycles_by_phase(profile: Profile, program: Program, labels: tuple[str, ...]) -> dict[str, int]:
    """Cycles of each phase, most first.

    Stalls for copies and flags are `wait`; bundles without a line are named by their opcodes.
    """
    found: Counter[str] = Counter()
    waits = profile.stalls[:, _WAITS].sum(axis=1)
    found[WAIT] += int(waits.sum())
    spent = (profile.cycles - waits).tolist()
    for bundle, label, cycles in zip(program.bundles, labels, spent, strict=True):
        found[label or f"{work_of(bundle)}, no line"] += int(cycles)
    return {phase: cycles for phase, cycles in found.most_common() if cycles}


_WAITS = [Owner.DMA_WAIT_READ, Owner.DMA_WAIT_WRITE, Owner.PROLOGUE, Owner.SYNC]
