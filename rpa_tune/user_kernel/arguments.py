"""The arguments of a function as a person writes them: `--shapes`. No jax.

| text | argument |
|---|---|
| `bf16[8,128]` | an array of which only shape and dtype are known |
| `s32[4](700,90,1,1)` | an array with its values |
| `s32[64](512)` | an array of one value |
| `s32[]`, `s32[](3)` | an array without axes |
| `128`, `0.5`, `True`, `None`, `'text'`, `(1, 2)` | a Python value, as it is |
| `name=...` | any of these by keyword |

Arguments are separated by commas or spaces. dtypes are those of XLA (`bf16`, `s32`, `f8e4m3fn`) or
of numpy (`bfloat16`, `int32`).
"""

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpa_kernels.names import did_you_mean
from rpa_tune.errors import UsageError

# XLA's names of dtypes; numpy's are the values.
DTYPES = {
    "pred": "bool", "s4": "int4", "s8": "int8", "s16": "int16", "s32": "int32", "u4": "uint4",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "f16": "float16", "f32": "float32",
    "bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
    "f4e2m1fn": "float4_e2m1fn", "i4": "int4", "i8": "int8", "i16": "int16", "i32": "int32",
}  # fmt: skip
_NAMES = (*DTYPES, *dict.fromkeys(DTYPES.values()))
_ARRAY = re.compile(r"([A-Za-z]\w*)\[([^\]]*)\](?:\((.*)\))?", re.DOTALL)
_KEYWORD = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)\s*(.*)", re.DOTALL)
_HINT = "bf16[8,1024,128] s32[4](700,90,1,1) causal=True"
_OPENING, _CLOSING = "[({", "])}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayArgument:
    """An array argument.

    Attributes:
      dtype: numpy's name.
      shape: Its axes.
      values: In row-major order, or one for all; None: only shape and dtype are known.
    """

    dtype: str
    shape: tuple[int, ...]
    values: tuple[int | float | bool, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What a function is called with.

    Attributes:
      positional: `ArrayArgument`s, numpy arrays and Python values, in order.
      keywords: The same by name.
    """

    positional: tuple[Any, ...] = ()
    keywords: dict[str, Any]


def parse_arguments(text: str, where: str = "--shapes") -> Arguments:
    """Reads arguments.

    Args:
      text: As in the table above.
      where: For errors.

    Raises:
      UsageError: A part that is none of these.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for part in _split(text, where):
        match = _KEYWORD.fullmatch(part)
        if match is None:
            if keywords:
                raise UsageError(
                    f"{part!r:.60} has no name, but stands behind {next(iter(keywords))}=",
                    where=where, hint="arguments without a name come first",
                )  # fmt: skip
            positional.append(_argument(part, where))
        elif match[1] in keywords:
            raise UsageError(f"{match[1]}= stands twice", where=where)
        else:
            keywords[match[1]] = _argument(match[2], where)
    return Arguments(positional=tuple(positional), keywords=keywords)


def _split(text: str, where: str) -> Iterator[str]:
    """Parts between commas and spaces that are in no brackets and no quotes."""
    part, depth, quote = "", 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif (char == "," or char.isspace()) and depth == 0:
            if part:
                yield part
            part = ""
            continue
        part += char
    if depth or quote:
        raise UsageError(f"a bracket or quote has no end: {text!r:.80}", where=where, hint=_HINT)
    if part:
        yield part


def _argument(text: str, where: str) -> Any:
    if match := _ARRAY.fullmatch(text):
        return _array(text, *match.groups(), where=where)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise UsageError(
            f"{text!r:.60} is neither dtype[axes] nor a Python value", where=where, hint=_HINT
        ) from None


def _array(text: str, dtype: str, axes: str, values: str | None, *, where: str) -> ArrayArgument:
    name = DTYPES.get(dtype, dtype)
    if name not in DTYPES.values():
        hint = did_you_mean(dtype, _NAMES)
        raise UsageError(f"{dtype!r} is no dtype, in {text:.60}", where=where, hint=hint)
    sizes = [size.strip() for size in axes.split(",")] if axes.strip() else []
    if not all(size.isascii() and size.isdigit() for size in sizes):
        raise UsageError(f"{text:.60}: axes are whole numbers", where=where, hint=_HINT)
    shape = tuple(int(size) for size in sizes)
    if values is None:
        return ArrayArgument(dtype=name, shape=shape)
    try:
        found = tuple(ast.literal_eval(f"({values},)"))
    except (ValueError, SyntaxError):
        found = ("",)
    if not all(isinstance(value, int | float) for value in found):
        raise UsageError(f"{text:.60}: values are numbers", where=where, hint=_HINT)
    if len(found) not in (1, math.prod(shape)):
        raise UsageError(
            f"{text:.60} has {len(found)} values", where=where,
            hint=f"it takes {math.prod(shape)}, or one for all",
        )  # fmt: skip
    _check_integers(text, name, found, where)
    return ArrayArgument(dtype=name, shape=shape, values=found)


def _check_integers(text: str, dtype: str, values: tuple[Any, ...], where: str) -> None:
    """Refuses what an integer of the dtype cannot be."""
    if dtype not in ("int8", "int16", "int32", "uint8", "uint16", "uint32"):
        return
    limits = np.iinfo(dtype)
    for value in values:
        if type(value) is float or not limits.min <= value <= limits.max:
            raise UsageError(
                f"{text:.60}: {value} is no {dtype}", where=where,
                hint=f"{limits.min} to {limits.max}",
            )  # fmt: skip


def load_values(path: Path) -> dict[str, Any]:
    """Arrays of an `.npz`, by name.

    Raises:
      UsageError: It is none.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("one array, without a name")
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"not an .npz of arrays: {error}", where=str(path),
            hint="numpy.savez(path, kv_lens=..., page_indices=...): names of arguments",
        ) from error  # fmt: skip
