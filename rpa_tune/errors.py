"""The exceptions of rpa-tune. A bad config is none of them: it is a `Status` with a reason.

```
RpaTuneError
├── UsageError      a person's input: plan, flag, unknown chip or model      exit 2
├── TableError      a table does not parse or does not fit its chip          exit 3
├── ArtifactError   compiled kernels that are damaged or not what they say   exit 3
├── DumpError       a compiler dump is missing or not understood             exit 1
├── TraceError      a request trace or capture is not what it should be      exit 2
├── DeviceError     no TPU, the wrong TPU, or a lost one                     exit 1
└── StoreError      a journal of unknown schema, locked, or not writable     exit 1
```

Messages say what, where, got and rule; `hint` says what to do next.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def install_command(extra: str) -> str:
    """What installs one of the extras of `pyproject.toml`, from the checkout if this is one.

    Args:
      extra: Its name, for example `tune`.
    """
    if (_CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e '{_CHECKOUT}[{extra}]'"
    return f"pip install 'rpa-tune[{extra}]'"


class RpaTuneError(Exception):
    """Base of all errors that a person may see; printed as `error:` and `hint:`.

    Attributes:
      where: File and line, option, or other place; may be empty.
      hint: What to do next; may be empty.
      exit_code: What the command exits with.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        """Keeps the parts apart, so that the CLI and `--json` can show them."""
        super().__init__(message)
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """All parts, one a line."""
        lines = [self.args[0]]
        if self.where:
            lines.append(f"  in {self.where}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class UsageError(RpaTuneError):
    """A person's input is wrong."""

    exit_code = 2


class TableError(RpaTuneError):
    """A tuned table does not parse or does not fit."""

    exit_code = 3


class ArtifactError(RpaTuneError):
    """A file of compiled kernels is damaged, or not what it says."""

    exit_code = 3


class DumpError(RpaTuneError):
    """A compiler dump is missing or not understood."""


class TraceError(RpaTuneError):
    """A request trace or capture is malformed.

    Attributes:
      settings: What in a workload's mapping would help, as YAML, `requests: {drop_bad: true}` say.
        Each stands in the hint where it has `{}`; a command that takes no mapping puts words of
        its own there (`with_words`).
    """

    exit_code = 2

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", settings: Sequence[str] = ()
    ) -> None:
        """Writes the settings into the hint as a plan has them."""
        super().__init__(message, where=where, hint=hint)
        self.settings = tuple(settings)
        self._template = hint
        self.with_words(lambda setting: f"`{setting}`")

    def with_words(self, word: Callable[[str], str]) -> None:
        """Names the settings as `word` does."""
        if self.settings:
            self.hint = self._template.format(*map(word, self.settings))


class DeviceError(RpaTuneError):
    """No TPU, the wrong TPU, or a lost one."""


class StoreError(RpaTuneError):
    """A journal of an unknown schema, locked by another writer, or not writable."""
