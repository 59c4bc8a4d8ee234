"""The Pallas calls of a traced function, and the values that their operands have.

The simulator runs a kernel's scalar program, so it needs the values of what the kernel reads as
scalars. Here everything around the Pallas calls that depends on known values alone is computed on
the CPU; the rest stays unknown, with a note of where it comes from.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from jax.extend import core

MARK = "rpa_tune_call_"  # and a number: scope around a Pallas call, which XLA names it by
_PALLAS = "pallas_call"
_LOOPS = ("scan", "while")
_WORD_BYTES, _LANES, _SUBLANES = 4, 128, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A value that is known: a numpy or jax array."""

    value: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Unknown:
    """A value that is not known.

    Attributes:
      sources: Arguments, and results of Pallas calls and loops, that it depends on.
    """

    sources: tuple[str, ...]


Value = Known | Unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCall:
    """A Pallas call.

    Attributes:
      name: `name=` of it, or its kernel's name.
      mark: Under which the compiler's dump has it.
      operands: In the order of the compiled call: sizes of a dynamic grid, scalar prefetch, inputs.
      shapes: Of the operands, as `int32[64]`.
      grid: Sizes of its grid; -1 where an array says it.
      is_in_loop: Whether one launch of several is explained.
    """

    name: str
    mark: str
    operands: tuple[Value, ...]
    shapes: tuple[str, ...]
    grid: tuple[int, ...]
    is_in_loop: bool

    def scalars(self) -> dict[int, npt.NDArray[np.int32]]:
        """The words of known operands as scalar memory holds them, by index."""
        found = {}
        for index, operand in enumerate(self.operands):
            if isinstance(operand, Known):
                words = words_of(np.asarray(operand.value))
                if words is not None:
                    found[index] = words
        return found


def words_of(array: npt.NDArray[Any]) -> npt.NDArray[np.int32] | None:
    """The words of an array in scalar memory; None for a layout that is not known.

    Elements of 8 or 16 bits share a word with those of the rows below, four or two of them, and
    rows are 128 words long. How tiles of more rows or lanes follow each other is not known here.

    Source: address arithmetic of splash attention's int8[1,8,8], libtpu 0.0.42.1.
    """
    size = array.dtype.itemsize
    if array.dtype.kind not in "iuf" or size > _WORD_BYTES:
        return None
    if size == _WORD_BYTES:
        return array.view(np.int32)
    if array.ndim < 2 or array.shape[-1] > _LANES:
        return None
    *lead, rows, lanes = array.shape
    pack = _WORD_BYTES // size
    if rows > _SUBLANES and (math.prod(lead) > 1 or rows % (_SUBLANES * pack)):
        return None
    padded = np.zeros((math.prod(lead), -(-rows // _SUBLANES) * _SUBLANES, _LANES), array.dtype)
    padded[:, :rows, :lanes] = array.reshape(-1, rows, lanes)
    grouped = padded.reshape(len(padded), -1, pack, _LANES).swapaxes(2, 3)
    return np.ascontiguousarray(grouped).view(np.int32)


def mark_calls(closed: Any) -> Any:
    """The same program, each of its Pallas calls in a scope of its own."""
    counter = iter(range(1_000_000))
    return closed.replace(jaxpr=_marked(closed.jaxpr, counter))


def _marked(jaxpr: Any, counter: Iterator[int]) -> Any:
    equations = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == _PALLAS:
            stack = eqn.source_info.name_stack.extend(f"{MARK}{next(counter)}")
            eqn = eqn.replace(source_info=eqn.source_info.replace(name_stack=stack))
        else:
            params = {
                name: _map_jaxprs(value, lambda inner: _marked(inner, counter))
                for name, value in eqn.params.items()
            }
            eqn = eqn.replace(params=params)
        equations.append(eqn)
    return jaxpr.replace(eqns=equations)


def _map_jaxprs(value: Any, change: Any) -> Any:
    """A parameter of an equation with the programs in it changed."""
    if isinstance(value, core.ClosedJaxpr):
        return value.replace(jaxpr=change(value.jaxpr))
    if isinstance(value, core.Jaxpr):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_map_jaxprs(item, change) for item in value)
    return value


def find_calls(closed: Any, arguments: Sequence[Value]) -> list[FoundCall]:
    """Every Pallas call of a program from `mark_calls`, in order.

    Args:
      closed: The program.
      arguments: What is known of each of its arguments.

    Raises:
      Exception: What an operation raises on values that are known.
    """
    calls: list[FoundCall] = []
    consts = [Known(value=value) for value in closed.consts]
    _Walk(calls).run(closed.jaxpr, consts, arguments)
    return calls


class _Walk:
    """One walk through a program."""

    def __init__(self, calls: list[FoundCall], loops: int = 0) -> None:
        self.calls = calls
        self.loops = loops

    def run(self, jaxpr: Any, consts: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
        """Its results."""
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= zip(jaxpr.invars, arguments, strict=True)

        def read(atom: Any) -> Value:
            return Known(value=atom.val) if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            values |= zip(
                eqn.outvars, self.results(eqn, [read(atom) for atom in eqn.invars]), strict=True
            )
        return [read(atom) for atom in jaxpr.outvars]

    def results(self, eqn: Any, inputs: list[Value]) -> Sequence[Value]:
        """What an equation gives."""
        if eqn.primitive.name == _PALLAS:
            call = _found(eqn, inputs, is_in_loop=self.loops > 0)
            self.calls.append(call)
            return [_unknown(inputs, f"the result of {call.name}")] * len(eqn.outvars)
        inner = [
            found for value in eqn.params.values() for found in _programs(value)
            if _has_calls(found.jaxpr)
        ]  # fmt: skip
        if not inner:
            return _evaluate(eqn, inputs)
        if eqn.primitive.name in _LOOPS:
            return self._loop(eqn, inner, inputs)
        if eqn.primitive.name == "cond":
            return self._branch(eqn, inputs)
        (program, *_) = inner
        if len(program.jaxpr.invars) == len(inputs):
            consts = [Known(value=value) for value in program.consts]
            return self.run(program.jaxpr, consts, inputs)
        return self._opaque(eqn, inner, inputs)

    def _branch(self, eqn: Any, inputs: list[Value]) -> Sequence[Value]:
        """The branch that is taken, or all where that is not known."""
        index, *rest = inputs
        branches = eqn.params["branches"]
        if isinstance(index, Known):
            branches = [branches[min(max(int(index.value), 0), len(branches) - 1)]]
        for branch in branches:
            consts = [Known(value=value) for value in branch.consts]
            results = self.run(branch.jaxpr, consts, rest)
        if len(branches) > 1:
            return [_unknown(inputs, "")] * len(eqn.outvars)
        return results

    def _loop(self, eqn: Any, inner: list[Any], inputs: list[Value]) -> Sequence[Value]:
        """A loop's body once; what changes from trip to trip is not known."""
        if eqn.primitive.name == "scan":
            constant = eqn.params["num_consts"]
            given = inputs[:constant]
        else:
            skipped, constant = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            given = inputs[skipped : skipped + constant]
        changing = _unknown(inputs, "values that change in a loop")
        walk = _Walk(self.calls, self.loops + 1)
        for program in inner:
            rest = len(program.jaxpr.invars) - len(given)
            consts = [Known(value=value) for value in program.consts]
            walk.run(program.jaxpr, consts, [*given, *[changing] * rest])
        return [changing] * len(eqn.outvars)

    def _opaque(self, eqn: Any, inner: list[Any], inputs: list[Value]) -> Sequence[Value]:
        """The calls of an equation whose arguments are not those of its program."""
        unknown = _unknown(inputs, f"values inside of {eqn.primitive.name}")
        for program in inner:
            consts = [Known(value=value) for value in program.consts]
            self.run(program.jaxpr, consts, [unknown] * len(program.jaxpr.invars))
        return [unknown] * len(eqn.outvars)


def _evaluate(eqn: Any, inputs: list[Value]) -> Sequence[Value]:
    """The results of an equation without Pallas calls, where all that it reads is known."""
    if eqn.effects or not all(isinstance(value, Known) for value in inputs):
        return [_unknown(inputs, "")] * len(eqn.outvars)
    read = {
        atom: value.value
        for atom, value in zip(eqn.invars, inputs, strict=True)
        if isinstance(value, Known) and not isinstance(atom, core.Literal)
    }
    alone = core.Jaxpr((), list(read), eqn.outvars, [eqn])
    made = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*read.values())
    return [Known(value=value) for value in made]


def _unknown(inputs: Sequence[Value], also: str) -> Unknown:
    """What depends on them."""
    names = [name for value in inputs if isinstance(value, Unknown) for name in value.sources]
    return Unknown(sources=tuple(dict.fromkeys([*names, *([also] if also else [])])))


def _programs(value: Any) -> Iterator[Any]:
    """Programs in a parameter, each with its constants."""
    if isinstance(value, core.ClosedJaxpr):
        yield value
    elif isinstance(value, core.Jaxpr):
        yield core.ClosedJaxpr(value, ())
    elif type(value) in (tuple, list):
        for item in value:
            yield from _programs(item)


def _has_calls(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name == _PALLAS
        or any(_has_calls(p.jaxpr) for value in eqn.params.values() for p in _programs(value))
        for eqn in jaxpr.eqns
    )


def _found(eqn: Any, inputs: list[Value], *, is_in_loop: bool) -> FoundCall:
    params = eqn.params
    name = params.get("name") or getattr(params.get("name_and_src_info"), "name", "")
    last = str(eqn.source_info.name_stack).rsplit("/", 1)[-1]
    grid = getattr(params.get("grid_mapping"), "grid", ())
    return FoundCall(
        name=name or getattr(getattr(params["jaxpr"], "debug_info", None), "func_name", "pallas"),
        mark=last,
        operands=tuple(inputs),
        shapes=tuple(f"{v.aval.dtype}{list(v.aval.shape)}".replace(" ", "") for v in eqn.invars),
        grid=tuple(size if isinstance(size, int) else -1 for size in grid),
        is_in_loop=is_in_loop,
    )


def numbered(calls: Sequence[FoundCall]) -> list[FoundCall]:
    """The calls with names that tell them apart: `name`, `name#2`."""
    seen: dict[str, int] = {}
    found = []
    for call in calls:
        seen[call.name] = seen.get(call.name, 0) + 1
        number = seen[call.name]
        found.append(call if number == 1 else replace(call, name=f"{call.name}#{number}"))
    return found
