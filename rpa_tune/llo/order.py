"""The order in which the instructions of one bundle are executed."""

from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import NO_REGISTER, Instruction

_LAST = (Op.STORE, Op.COPY, Op.SYNC_ADD, Op.BRANCH, Op.HALT)


def executable_order(found: list[Instruction]) -> tuple[Instruction, ...]:
    """Orders one bundle's instructions: phis, then by use, then effects in the dump's order."""
    if len(found) < 2:
        return tuple(found)
    rest = sorted(found, key=lambda item: (item.op is not Op.PHI, item.op in _LAST))
    waiting = {item.result for item in rest if item.result != NO_REGISTER}
    done: list[Instruction] = []
    while rest:
        for position, item in enumerate(rest):
            if item.op is Op.PHI or not (_reads(item) & (waiting - {item.result})):
                done.append(rest.pop(position))
                waiting.discard(item.result)
                break
        else:
            # No order exists: keep the dump's, and let the interpreter find unset registers.
            done.extend(rest)
            break
    return tuple(done)


def _reads(item: Instruction) -> set[int]:
    """Registers an instruction reads."""
    used = {term.first for term in item.terms} | {term.second for term in item.terms}
    return used | {item.predicate}
