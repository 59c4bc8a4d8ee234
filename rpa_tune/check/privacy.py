"""Takes out of texts what says whose machine they are from: a check's file is sent to others."""

import contextlib
import getpass
import platform
import re
from collections.abc import Mapping
from pathlib import Path

# A path of two names or more. What comes before it is no part of a word, so `1/2` and `a/b` stay.
_PATH = re.compile(r"(?<![\w.])(?:~|/[\w.+@%-]+)(?:/[\w.+@%-]+)+/?")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# libtpu's versions have four numbers, too, and begin with a zero, as no address does.
_ADDRESS = re.compile(r"(?<![\w.])[1-9]\d{0,2}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.])")
_PLAIN = re.compile(r"[\w.-]{1,40}")
_SHORTEST_NAME = 3  # of a user or host: shorter ones are words of their own
# Names of users that say nothing, and are words.
_NOBODY = ("root", "user", "ubuntu", "localhost")


def without_places(text: str) -> str:
    """A text without paths, addresses, and the names of this host and its user."""
    for pattern, word in ((_MAIL, "<mail>"), (_PATH, "<path>"), (_ADDRESS, "<address>")):
        text = pattern.sub(word, text)
    for name, word in _names().items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text)
    return text


def public_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Variables that decide a program, without values that may be names or addresses.

    Args:
      settings: As `compile.target.program_settings` has them: flags of the compiler keep their
        words, anything else only what is one plain word.
    """
    return {
        name: without_places(value)
        if name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") or _PLAIN.fullmatch(value)
        else "<left out>"
        for name, value in settings.items()
    }


def _names() -> dict[str, str]:
    """What to take out: names of host, user and home."""
    found = {platform.node(): "<host>", Path.home().name: "<user>"}
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        found[getpass.getuser()] = "<user>"
    return {
        name: word
        for name, word in found.items()
        if len(name) >= _SHORTEST_NAME and name not in _NOBODY
    }
