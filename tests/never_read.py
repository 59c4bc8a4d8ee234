"""Operands of a compiled kernel that nothing in its schedule reads or writes."""

import re

_OPERAND = re.compile(r"(%s\w+) = inlined_call_operand\.[^;\n]*?index: (\d+)([^;\n]*)")
_ALIASES = re.compile(r"may-alias: \{([\d,]+)\}")


def operands_never_read(schedule):
    """Their numbers.

    Args:
      schedule: Text of a kernel's final bundles.

    Returns:
      Numbers of operands whose address is in no instruction. An operand that shares its buffer
      with a result counts as read where the result's address is used.
    """
    used, aliases = set(), {}
    for register, number, rest in _OPERAND.findall(schedule):
        if len(re.findall(rf"{register}\b", schedule)) > 1:
            used.add(int(number))
        shared = _ALIASES.search(rest)
        aliases[int(number)] = set(map(int, shared[1].split(","))) if shared else {int(number)}
    return {number for number, same in aliases.items() if not used & same}
