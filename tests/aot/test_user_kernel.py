"""A user's own kernel through the real compiler: time, source lines, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pure.user_kernel import kernels

from rpa_tune.candidate import Status
from rpa_tune.errors import UsageError
from rpa_tune.user_kernel.explain import explain_kernel, plain_schedule

pytestmark = pytest.mark.aot
X = jax.ShapeDtypeStruct((16, 128), jnp.float32)


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """One function on two launches: its loops' trips follow from its scalars."""
    cache = tmp_path_factory.mktemp("cache")
    lens = (np.array([3, 4], np.int32), np.array([0, 0], np.int32))
    return [explain_kernel(kernels.derived, each, X, chip="v6e", cache=cache) for each in lens]


def test_a_jitted_function_has_a_time_and_its_lines(explained):
    found, again = explained
    assert found.answer.status is Status.OK, found.answer.detail
    assert (found.answer.call.name, found.answer.call.grid) == ("rows", (2,))
    assert found.answer.scalars[0].tolist() == [3, 7]
    low, high = found.interval_us
    assert low < found.time_us < high
    assert found.timeline.write_bytes == 16 * 128 * 4
    files = {line.file for line in found.profile.lines}
    assert kernels.__file__ in files
    total = sum(found.profile.lines.values()) + found.profile.no_line
    assert total == pytest.approx(found.profile.cycles.sum())
    assert again.answer.costs["from_cache"]  # other values, the same program
    made = found.to_dict()
    assert made["status"] == "ok"
    assert made["lines"][0]["cycles"] >= made["lines"][-1]["cycles"]
    with plain_schedule(found.answer) as path:
        assert "loc(" in path.read_text()


def test_what_is_read_as_scalars_must_be_known(tmp_path):
    starts = jax.ShapeDtypeStruct((2,), jnp.int32)
    with pytest.raises(UsageError, match=r"reads operand 0 \(int32\[2\]\), whose") as caught:
        explain_kernel(kernels.plain, starts, X, chip="v6e", cache=tmp_path)
    assert "depend on starts" in caught.value.args[0]
    assert "--values" in caught.value.hint


def test_what_pallas_refuses_is_one_error(tmp_path):
    with pytest.raises(UsageError, match="does not lower for v6e: ValueError"):
        explain_kernel(kernels.refused, X, chip="v6e", cache=tmp_path)


def test_a_function_that_no_worker_can_import_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be sent to a worker process") as caught:
        explain_kernel(lambda x: x, X, chip="v6e", cache=tmp_path)
    assert "top level of a module" in caught.value.hint
