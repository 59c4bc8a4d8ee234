"""What a bundle does, by its opcodes."""

from rpa_tune.llo.engines import Direction, direction_of
from rpa_tune.llo.opcodes import Op, Slot
from rpa_tune.llo.program import Bundle

# What a bundle does, by its slots: the first that it has.
VECTOR_WORK = (
    (("MXU", "VPOP"), "matmul"),
    (("EUP",), "exp"),
    (("VALU", "XLU"), "vector"),
    (("VLOAD", "VSTORE", "FILL", "SPILL"), "load/store"),
)
STARTS = {Direction.READ: "prefetch", Direction.WRITE: "write", Direction.LOCAL: "scalar copies"}


def work_of(bundle: Bundle) -> str:
    """What a bundle does: vector work, copies that it starts, or scalar work."""
    for slots, work in VECTOR_WORK:
        if any(bundle.slots[Slot[name]] for name in slots):
            return work
    for item in bundle.instructions:
        if item.op is Op.COPY:
            return STARTS[direction_of(item.detail)]
    return "scalar"
