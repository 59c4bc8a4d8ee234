"""How the two cores of a device meet, as dumps spell it.

Both cores run the same program, so that what one sends at a barrier is what the other receives.
v5p exchanges a constant word (`vpush.ccrf`, `vpop.ccrf`) and checks it; v4 adds to a flag of the
other core (`vsyncadd.remote`) and waits for its own (`vwait.ge.trace`). A word in SMEM tells a core
which it is.
"""

import re

from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import NO_REGISTER, Instruction, Term

_V4_WAIT = "/* barrier-megacore-wait */"
_CORE_ID = re.compile(r"\bcore id \*/")  # of jax 0.12: "megacore core id :: core id"
_CORES = 2  # that a barrier is for


class MeetingError(ValueError):
    """A barrier of another form; holds what was found and the rule it breaks."""


class Meetings:
    """Reads the parts of barriers as they appear in a dump.

    Attributes:
      num_cores: Cores that run the program: 2 as soon as a barrier was met.
      core_id: SMEM address of the core's number, once it was read.
    """

    def __init__(self) -> None:
        self.num_cores = 1
        self.core_id: int | None = None
        self._constants: dict[str, int] = {}
        self._sent: list[int] = []
        self._received: set[int] = set()

    def constant(self, vector: str, text: str) -> None:
        """Remembers a vector whose words are one constant: what cores exchange."""
        if text.isdecimal():
            self._constants[vector] = int(text)

    def is_received(self, vector: int) -> bool:
        """Whether a vector register holds the word that the other core sent."""
        return vector in self._received

    def parts(self, item: Instruction, mnemonic: str, rest: str) -> tuple[Instruction, ...]:
        """What an instruction does that may be part of a meeting; itself if it is none.

        Raises:
          MeetingError: It is a part that no barrier known has.
        """
        if item.op is Op.LOAD and _CORE_ID.search(rest):
            if item.terms[0].first == NO_REGISTER:  # else of a chip whose devices have one core
                self.core_id = item.terms[0].constant
        elif mnemonic == "vpush.ccrf":
            if (word := self._constants.get(rest.strip())) is None:
                raise MeetingError("`vpush.ccrf` of no constant", "cores exchange known words")
            self._sent.append(word)
            return ()
        elif mnemonic == "vpop.ccrf":
            if not self._sent:
                raise MeetingError("`vpop.ccrf` without a `vpush.ccrf`", "each core sends a word")
            self.num_cores = _CORES
            self._received.add(item.result)
            return (item._replace(terms=(Term(self._sent.pop(0)),)),)
        elif mnemonic == "vwait.ge.trace":
            if _V4_WAIT not in rest:
                raise MeetingError(f"`{mnemonic}` for an unknown purpose", "it waits for a core")
            self.num_cores = _CORES
            # What the other core adds to the flag.
            signal = item._replace(op=Op.SYNC_ADD, result=NO_REGISTER)
            return (item._replace(terms=(Term(0),)), signal)
        return (item,)
