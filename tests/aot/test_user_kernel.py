"""A user's own kernel through the real compiler: time, source lines, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pure.user_kernel import kernels, plain_kernels

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


CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")
NOT_LOWERED = {("v4", "matmul_int8")}  # Mosaic has no int8 matmul there


def explain_plain(name, chip, cache):
    """One of the plain kernels, and the bytes that it must write."""
    function, arguments, written = plain_kernels.CASES[name]
    found = explain_kernel(function, *arguments, chip=chip, cache=cache)
    assert found.answer.status is Status.OK, found.answer.detail
    assert not found.timeline.unknown
    return found.timeline, written


def test_a_pipelined_kernel_passes_its_bounds_checks_and_floats_decide(tmp_path):
    # On v5e a check shifts its pointer back, and on v4 it masks it.
    timeline, written = explain_plain("floats", "v5e", tmp_path)
    assert timeline.write_bytes == written
    inner = max(timeline.loops, key=lambda loop: loop.depth)
    assert inner.trips == plain_kernels.FLOAT_TRIPS


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_plain_kernels_have_a_time_on_every_chip(chip, tmp_path):
    for name in plain_kernels.CASES:
        if (chip, name) not in NOT_LOWERED:
            timeline, written = explain_plain(name, chip, tmp_path)
            assert timeline.write_bytes == written, name


@pytest.mark.slow
def test_a_path_that_depends_on_data_is_an_answer(tmp_path):
    found = explain_kernel(plain_kernels.data_decides, X, chip="v6e", cache=tmp_path)
    assert found.answer.status is Status.NOT_UNDERSTOOD
    assert "depends on a value that it takes from a vector" in found.answer.detail
