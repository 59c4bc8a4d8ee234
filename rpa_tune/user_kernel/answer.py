"""What goes to the worker that explains a user's kernel, and what comes back. No jax."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_tune.candidate import Status
from rpa_tune.hw.chip import Chip
from rpa_tune.llo.timeline import Timeline
from rpa_tune.user_kernel.arguments import Arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTask:
    """What to explain.

    Attributes:
      function: `module:function` or `file.py:function`; empty where `pickled` has it.
      arguments: Of the function; None where `maker` or `pickled` has them.
      keywords: Python values by name, beside `arguments` or over them.
      maker: `module:function` that returns them; empty without one.
      values: Arrays by the name of the argument that has them.
      pickled: (function, positional, keywords), pickled; empty where `function` names it.
      main: What a worker needs to find what the caller's `__main__` defines.
      call: Name of the Pallas call; empty where there is one.
      chip: Where it runs.
      cache_dir: Where compiles are kept.
      folders: Where modules are looked for beside those that are installed.
    """

    chip: Chip
    cache_dir: Path
    function: str = ""
    arguments: Arguments | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    maker: str = ""
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    pickled: bytes = b""
    main: dict[str, Any] = field(default_factory=dict)
    call: str = ""
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """What is wrong with what a person asked.

    Attributes:
      message: What, and the rule.
      where: Option, file and line, or argument.
      hint: What to do next.
    """

    message: str
    where: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallName:
    """A Pallas call of the function.

    Attributes:
      name: As it is chosen by.
      operands: Its shapes, as `int32[64]`.
      grid: Sizes of its grid; -1 where an array says it.
      is_in_loop: Whether one launch of several is explained.
    """

    name: str
    operands: tuple[str, ...]
    grid: tuple[int, ...]
    is_in_loop: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelAnswer:
    """What is known of one Pallas call.

    Attributes:
      status: OK, or what went wrong.
      detail: One line; empty when OK.
      call: Which.
      others: Names of the function's other Pallas calls.
      timeline: One simulated launch; None without.
      scalars: Operands whose values are known, by index.
      spaces: Memory that each operand of the compiled call lives in, by index.
      schedule: The compiler's final schedule, in the cache; None without.
      costs: Seconds of each part, and memory as the compiler laid it out.
    """

    status: Status
    call: CallName
    detail: str = ""
    others: tuple[str, ...] = ()
    timeline: Timeline | None = None
    scalars: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    spaces: dict[int, str] = field(default_factory=dict)
    schedule: Path | None = None
    costs: dict[str, Any] = field(default_factory=dict)
