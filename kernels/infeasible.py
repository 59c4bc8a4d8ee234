"""Why a config cannot exist, as a value.

A bad config is an answer, not an accident: `Space` counts these by `limit`, the store keeps
them, and a report can say why nothing fits. Exceptions are for bugs and broken tools.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Infeasible:
    """A limit that a config breaks.

    Attributes:
      limit: Name of the limit, for example `"vmem_bytes"` or `"bkv_sz % page_size"`.
      need: What the config asks for, in `unit`.
      have: What the limit allows, in `unit`.
      unit: `"bytes"`, `"tokens"`, `"pages"`, ...
      hint: What would be allowed; may be empty.
    """

    limit: str
    need: int
    have: int
    unit: str
    hint: str = ""

    def __str__(self) -> str:
        """One line: limit, need, have, unit and hint."""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.limit}: need {self.need:,} {self.unit}, have {self.have:,}{hint}"
