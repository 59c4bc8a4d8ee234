"""What the worker says of scalars that nobody knows."""

import numpy as np
import pytest

from rpa_tune.user_kernel.find import FoundCall, Known, Unknown
from rpa_tune.user_kernel.task import _not_known


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Unknown(sources=("lens", "pages")), "whose values depend on lens and pages"),
        (Known(value=np.zeros(4, np.int8)), "whose layout in scalar memory is not known: int8"),
    ],
)
def test_the_operand_and_what_it_depends_on_are_named(value, text):
    call = FoundCall(
        name="rows", mark="m", operands=(value,), shapes=("int32[4]",), grid=(1,), is_in_loop=False
    )
    refusal = _not_known(call, 0).refusal
    assert refusal.message == f"the scalar program of rows reads operand 0 (int32[4]), {text}"
    assert refusal.where == "--shapes"
    assert "the simulator runs the scalar program" in refusal.hint
