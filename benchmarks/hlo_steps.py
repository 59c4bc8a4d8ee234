"""What a compiled XLA program runs, in order: computations, and copies that are in none of them.

The compiler writes a schedule for each computation, but one only for all that are alike; copies
that it starts by itself (`copy-start`) are in the schedule of no computation. Both cost time. Reads
the text of a scheduled module; needs no jax.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from rpa_tune.errors import UsageError
from rpa_tune.llo.engines import Direction
from rpa_tune.llo.events import COPY, WAIT
from rpa_tune.llo.recording import Launch, Recording

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>\S+) = (?P<type>.*?) (?P<op>[a-z][\w-]*)\(")
_NOTES = re.compile(r",? (?:metadata|backend_config|frontend_attributes|sharding)=.*")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")
# They name what is there already.
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all")
_CONTROL = ("while", "conditional", "call")  # computations within computations
_IN_VMEM, _IN_SMEM = "S(1)}", "S(6)}"  # memory spaces of layouts; none is HBM
_DIRECTIONS = len(Direction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing that the program does.

    Attributes:
      schedule: Name of the computation whose schedule it runs; empty for a copy.
      direction: Of a copy.
      num_bytes: Of a copy.
    """

    schedule: str = ""
    direction: Direction = Direction.READ
    num_bytes: int = 0


def read_steps(text: str, schedules: Collection[str]) -> tuple[Step, ...]:
    """The steps of a module, in their order.

    A copy that runs beside a computation is left out: it takes part of the bandwidth, and no time.
    So is arithmetic on scalars, a few cycles of the core that starts computations.

    Args:
      text: The compiled module as text.
      schedules: Names of the computations that have a schedule.

    Raises:
      UsageError: Something runs on a SparseCore, is called in a loop, or has no schedule.
    """
    bodies, entry = _split(text)
    types = {found["name"]: found["type"] for line in entry if (found := _INSTRUCTION.match(line))}
    twins: dict[str, str] = {}
    steps: list[Step | None] = []
    started: dict[str, int] = {}
    for line in entry:
        if 'async_execution_thread="sparsecore"' in line:
            raise UsageError("a computation of XLA runs on the SparseCore: it has no schedule here")
        found = _INSTRUCTION.match(line)
        if found is None or found["op"] in _FREE or found["op"].startswith("call-"):
            continue
        name, op = found["name"], found["op"]
        if op in _CONTROL:
            raise UsageError(f"{name}: a {op} of computations cannot be simulated")
        if op == "copy-start":
            started[name] = len(steps)
            steps.append(_copy_of(found["type"]))
            continue
        if op == "copy-done":
            place = started[_NAME.findall(line[found.end() :])[0]]
            if any(step and step.schedule for step in steps[place:]):
                steps[place] = None
            continue
        signature = _signature(line, types, bodies)
        if name in schedules:
            twins.setdefault(signature, name)
            steps.append(Step(schedule=name))
        elif signature in twins:
            steps.append(Step(schedule=twins[signature]))
        elif _IN_SMEM not in found["type"]:
            raise UsageError(f"{name}: neither it nor a computation like it has a schedule")
    return tuple(step for step in steps if step is not None)


def copies_launch(copies: list[Step], granule_bytes: int) -> Launch:
    """Copies one after the other, each waited for before the next, as a recorded launch."""
    rows = np.zeros((_DIRECTIONS + 1, 6), np.int32)
    rows[:_DIRECTIONS, 0], rows[_DIRECTIONS, 0] = COPY, WAIT
    rows[:_DIRECTIONS, 2] = np.arange(_DIRECTIONS)  # the kind: linear, in this direction
    blocks = np.array([[row, row + 1, 1] for row in range(len(rows))], np.int32)
    trace = []
    for flag, copy in enumerate(copies):
        granules = math.ceil(copy.num_bytes / granule_bytes)
        trace += [int(copy.direction), flag, granules, _DIRECTIONS, flag, granules]
    return Launch((Recording(rows, blocks, np.array(trace, np.int32), len(copies)),), False)


def _split(text: str) -> tuple[dict[str, str], list[str]]:
    """Bodies of computations with names in the order of their use, and the lines of the entry."""
    bodies: dict[str, str] = {}
    entry: list[str] = []
    here: list[str] = []
    name = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            name, here = ("" if line.startswith("E") else _NAME.findall(line)[0]), []
        elif line != "}" and not line.startswith("}, "):  # `}}` ends a text within a line
            here.append(_NOTES.sub("", line))
        elif name:
            bodies[name], name = _renamed("\n".join(here)), ""
        else:
            entry, here = here, []
    return bodies, entry


def _renamed(body: str) -> str:
    numbers: dict[str, int] = {}
    return _NAME.sub(lambda name: f"%{numbers.setdefault(name[1], len(numbers))}", body)


def _signature(line: str, types: dict[str, str], bodies: dict[str, str]) -> str:
    """An instruction without names: the types of its operands, the bodies that it calls."""
    _, _, right = line.partition(" = ")
    return _NAME.sub(lambda name: types.get(name[1]) or bodies.get(name[1], name[1]), right)


def _copy_of(of_start: str) -> Step:
    """The copy of a `copy-start`, whose type is (destination, source, context)."""
    destination, source = re.findall(r"[a-z]+\d+\[[\d,]*\](?:\{[^}]*\})?", of_start)[:2]
    kind = _ARRAY.match(destination)
    assert kind is not None
    size = math.prod(int(n) for n in kind[3].split(",") if n) * int(kind[2]) // 8
    if _IN_VMEM in destination:
        direction = Direction.LOCAL if _IN_VMEM in source else Direction.READ
    else:
        direction = Direction.LOCAL if _IN_SMEM in destination else Direction.WRITE
    return Step(direction=direction, num_bytes=max(1, size))
