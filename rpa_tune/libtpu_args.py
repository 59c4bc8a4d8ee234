"""Flags that a server gives libtpu (`LIBTPU_INIT_ARGS`): how they are written, read and compared.

They decide what is compiled, so a candidate, a row and an artefact say which they were made with.
Written in one way: each flag once, in the order of their names, one space between two. No jax.
"""

import os
import re

from rpa_tune.errors import UsageError

VARIABLE = "LIBTPU_INIT_ARGS"
_FLAG = re.compile(r"--[A-Za-z]\w*(=\S*)?")
# What says where to write and what, source lines among it, and decides no program.
_DUMPS = ("--xla_jf_dump", "--xla_dump", "--xla_mosaic_enable_llo_source_annotations")
# jax appends it on a TPU host; no executable depends on it. Source: jax/_src/cloud_tpu_init.py.
HOST_FLAG = "--xla_tpu_use_enhanced_launch_barrier=true"
# What a server gives, and no schedule of our kernels depends on: rows made without it are as good.
# An artefact holds XLA's code around a kernel, too, so there it counts.
# Source: tests/aot/test_settings.py compares schedules. tpu-inference 0.32.0 (`env_override.py`)
# gives it to every server.
WITHOUT_EFFECT = ("--xla_tpu_use_dynamic_smem_negotiation=true",)


def parse_args(text: str, where: str = "--libtpu-args") -> str:
    """Flags as they are kept.

    Args:
      text: As a person writes them, in any order.
      where: Option, or file and line, for the error.

    Raises:
      UsageError: A word that is no flag, a flag twice, or one that only dumps.
    """
    flags: dict[str, str] = {}
    for word in text.split():
        name = word.partition("=")[0]
        rule = ""
        if not _FLAG.fullmatch(word):
            rule = "flags are --name=value, with spaces between them"
        elif name in flags:
            rule = "each flag stands once"
        elif name.startswith(_DUMPS):
            rule = "flags that dump are set by the tuner, and change no program"
        if rule:
            raise UsageError(f"{word:.80}: {rule}", where=where, hint="--xla_tpu_flag=true")
        flags[name] = word
    return " ".join(flags[name] for name in sorted(flags))


def args_here() -> str:
    """What libtpu of this process is given, as flags are kept; what decides no program left out."""
    words = {
        word.partition("=")[0]: word
        for word in os.environ.get(VARIABLE, "").split()
        if word != HOST_FLAG and not word.startswith(_DUMPS)
    }
    return " ".join(words[name] for name in sorted(words))


def difference(made_with: str, here: str) -> str:
    """In words what two sets of flags differ in; empty if in nothing that a schedule depends on.

    Args:
      made_with: Of a row, say.
      here: Of the process that would use it.
    """
    one, other = ([f for f in s.split() if f not in WITHOUT_EFFECT] for s in (made_with, here))
    if one == other:
        return ""
    return f"made with {VARIABLE}={made_with or 'none'}, here {here or 'none'}"
