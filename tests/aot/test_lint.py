"""The compiler's linter fires on kernels that deserve it, and passes right ones (libtpu 0.0.52)."""

import functools

import pytest

from rpa_tune.candidate import Status
from rpa_tune.compile.lint import has_linter, linter_flags
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import worker_environment
from rpa_tune.provenance import versions

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not has_linter(versions()["libtpu"]), reason="libtpu 0.0.52 has the linter"),
]
ALL = ("dma_race", "bounds_check", "vmem_poison_use")


@pytest.fixture(scope="module")
def pool():
    environment = functools.partial(worker_environment, libtpu_args=linter_flags(ALL))
    with WorkerPool(num_workers=1, deadline_s=120, environment=environment) as pool:
        yield pool


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("right", ""),
        ("two_copies_into_one_buffer", "dma_race"),
        ("nobody_waits", "dma_race"),
        ("nobody_wrote", "vmem_poison_use"),
        ("load_past_the_end", "bounds_check"),
        # These should be found, and are not: docs/versions.md.
        ("page_past_the_table", ""),
        ("read_before_the_wait", ""),
        # Right, and refused: why nobody is asked for `vmem_poison_use`. Its neighbours are not.
        ("size_of_a_copy", "vmem_poison_use"),
        ("masked_load", ""),
        ("place_of_a_store", ""),
        ("spare_row", ""),
    ],
)
def test_each_kind_of_finding(pool, body, kind):
    (reply,) = pool.map_unordered("aot.lint_tasks:lint", [("v6e", body)])
    assert reply.failure is None, reply.failure
    assert reply.value.kind == kind, reply.value
    assert reply.value.status is (Status.WRONG_ANSWER if kind else Status.OK)
