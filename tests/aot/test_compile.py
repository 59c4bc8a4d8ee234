"""Device-free compiles in worker processes: five chips, refusals, dumps that are not there."""

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import lower
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.compile.pool import FailureKind, WorkerPool
from rpa_tune.compile.probe import PROBLEM
from rpa_tune.evaluate.simulate_task import TASK, SimulateTask
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip

pytestmark = pytest.mark.aot

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(num_workers=2, deadline_s=120) as pool:
        yield pool


def compile_copies(pool, *tasks):
    replies = pool.map_unordered("aot.compile_tasks:compile_copy", tasks)
    return sorted(replies, key=lambda reply: reply.index)


def test_every_chip_compiles_and_says_what_it_laid_out(pool):
    for chip, reply in zip(
        CHIPS, compile_copies(pool, *({"chip": chip, "rows": 256} for chip in CHIPS)), strict=True
    ):
        assert reply.failure is None, (chip, reply.failure)
        assert reply.value["status"] is Status.OK
        assert "dma.vmem_to_hbm" in reply.value["text"]
        # XLA may place small operands in VMEM too (it does on v7x), beside the kernel's scratch.
        assert reply.value["vmem_bytes"] == 256 * 128 * 4
        assert reply.value["vmem_spill_bytes"] == 0
        assert reply.value["compile_s"] > 0
        x_bytes = 4 * 256 * 128 * 4
        assert 2 * x_bytes <= reply.value["hbm_allocated_bytes"] < 2 * x_bytes + 65536


def test_two_chips_give_two_schedules(pool):
    v5e, v7x = compile_copies(pool, {"chip": "v5e", "rows": 64}, {"chip": "v7x", "rows": 64})
    assert v5e.value["text"] != v7x.value["text"]


def test_more_vmem_than_there_is_is_a_status_with_both_figures(pool):
    have = load_chip("v5e").vmem_bytes
    (reply,) = compile_copies(pool, {"chip": "v5e", "rows": 2 * have // 512})
    assert reply.value["status"] is Status.OUT_OF_MEMORY
    assert reply.value["detail"] == f"vmem: the compiler needs {2 * have:,} bytes, have {have:,}"
    assert reply.value["bundles"] is None


def test_more_vmem_than_a_kernel_gets_unasked_is_out_of_memory_too(pool):
    (reply,) = compile_copies(pool, {"chip": "v6e", "rows": 200 << 10})
    assert reply.value["status"] is Status.OUT_OF_MEMORY
    assert reply.value["detail"].startswith(f"vmem: the compiler needs {100 << 20:,} bytes, have ")


def test_a_schedule_under_another_name_is_an_error_that_lists_the_names(pool):
    (reply,) = compile_copies(pool, {"chip": "v6e", "rows": 64, "called": "other"})
    assert reply.failure.kind is FailureKind.EXCEPTION
    assert reply.failure.phase == "compile"
    assert "no schedule of kernel 'other'" in reply.failure.detail
    assert "copy_rows.1" in reply.failure.detail


def test_the_second_compile_of_a_worker_finds_its_own_schedule():
    with WorkerPool(num_workers=1, deadline_s=120) as pool:
        big, small = compile_copies(pool, {"chip": "v6e", "rows": 512}, {"chip": "v6e", "rows": 64})
    assert big.value["vmem_bytes"] == 8 * small.value["vmem_bytes"]
    assert big.value["text"] != small.value["text"]


def test_lines_of_sources_are_no_part_of_a_program(pool):
    first, second = pool.map_unordered("aot.compile_tasks:lowered_text", [0, 7])
    assert first.failure is None, first.failure
    assert "tpu_custom_call" in first.value
    assert first.value == second.value


def test_the_same_program_of_other_sources_is_not_compiled_again(pool, tmp_path):
    family, chip = load_family("decode"), load_chip("v5e")
    config = family.default_config(PROBLEM, chip.target)
    candidate = Candidate(family=family, problem=PROBLEM, config=config, chip=chip, workload="w")
    batch = Batch(q_lens=(1, 1), kv_lens=(7, 100), num_decode=2)
    task = SimulateTask(candidate=candidate, batches=(batch,), cache_dir=tmp_path)

    def answer():
        (reply,) = pool.map_unordered(TASK, [task])
        assert reply.failure is None, reply.failure
        assert reply.value.status is Status.OK, reply.value
        return reply.value

    first = answer()
    key = compile_key(candidate)
    (tmp_path / "compile" / key[:2] / f"{key}.json").unlink()  # as if the sources were others
    second = answer()
    assert (first.costs["from_cache"], second.costs["from_cache"]) == (False, True)
    assert second.timelines == first.timelines
    assert CompileCache(tmp_path).load(key).bundles is not None


@pytest.mark.parametrize(
    ("message", "status", "detail"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space vmem. Used 288.50M of 128.00M vmem. Exceeded vmem capacity by 160.50M.",
            Status.OUT_OF_MEMORY,
            "vmem: the compiler needs 302,514,176 bytes, have 134,217,728",
        ),
        (
            "RESOURCE_EXHAUSTED: something new",
            Status.OUT_OF_MEMORY,
            "RESOURCE_EXHAUSTED: something new",
        ),
        (
            "INTERNAL: Mosaic failed to compile TPU kernel: bad shape\n\nThe MLIR operation ...\n",
            Status.COMPILE_FAILED,
            "INTERNAL: Mosaic failed to compile TPU kernel: bad shape The MLIR operation ...",
        ),
    ],
)
def test_refusals_are_told_apart(message, status, detail):
    refused = lower._refusal(message)
    assert (refused.status, refused.detail) == (status, detail)
