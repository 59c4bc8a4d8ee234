"""Small candidates, workloads and timelines for the evaluator tests."""

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate, Status
from rpa_tune.evaluate.simulate_task import SimulateAnswer
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.opcodes import Slot
from rpa_tune.llo.timeline import SlotUse, Timeline
from rpa_tune.workload.workload import WeightedBatch, Workload

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=32,
    max_num_seqs=8, pages_per_seq=8, num_pages=64,
)  # fmt: skip
WORKLOAD = Workload(
    name="small",
    source="made up",
    batches=(
        WeightedBatch(batch=Batch(q_lens=(1, 1), kv_lens=(20, 70), num_decode=2), weight=0.75),
        WeightedBatch(batch=Batch(q_lens=(1, 9), kv_lens=(100, 9), num_decode=1), weight=0.25),
    ),
)
CONFIG = {"bkv_sz": 128, "bkv_csz": 128, "seqs_per_step": 1, "num_buffers": 2, "bq_sz": 8}


def candidate(*, chip="v6e", workload=WORKLOAD, problem=PROBLEM, **config):
    """A decode candidate; keyword arguments change its config."""
    return Candidate(
        family=load_family("decode"),
        problem=problem,
        config=load_family("decode").config_from_dict(CONFIG | config),
        chip=load_chip(chip),
        workload=workload.digest,
    )


def timeline(
    *, owners, traffic=None, mxu_busy=0.0, time_us=1.0, bound_by="hbm", unknown=None, guesses=()
):
    """A timeline in which only what is given differs from zero."""
    return Timeline(
        chip="v6e",
        core_cycles=(sum(owners.values()),),
        total_cycles=sum(owners.values()),
        cycles_by_owner=owners,
        time_us=time_us,
        num_bundles=1,
        read_bytes=traffic.read_bytes if traffic else 0,
        write_bytes=traffic.write_bytes if traffic else 0,
        prefetch_bytes=0,
        num_copies=traffic.num_copies if traffic else 0,
        num_prefetch_copies=0,
        read_busy_cycles=0.0,
        write_busy_cycles=0.0,
        mxu_busy_cycles=mxu_busy,
        slots={slot.name: SlotUse(instructions=0, share=0.0) for slot in Slot},
        loops=(),
        bound_by=bound_by,
        unknown=unknown or {},
        guesses=guesses,
    )


def traffic_of(candidate, batch):
    """What the account says the DMAs of a launch move."""
    return candidate.family.launch_traffic(
        candidate.problem, candidate.config, candidate.chip, batch
    )


def mxu_flops_of(candidate, batch):
    """What the account says the MXUs of a launch execute."""
    return candidate.family.launch_mxu_flops(
        candidate.problem, candidate.config, candidate.chip, batch
    )


def mxu_busy_cycles(candidate, batch):
    """The least time in which the MXUs of a chip do what the account says."""
    chip = candidate.chip
    a_cycle = 2 * chip.value("mxu_rows_per_cycle") * chip.value("mxu_size") ** 2
    return mxu_flops_of(candidate, batch) / a_cycle


def answer(task, **changes):
    """What a worker would answer if every cycle were spent on `bkv_sz`."""
    timelines = tuple(
        timeline(
            owners={"issue": task.candidate.config.bkv_sz * batch.num_seqs, "launch": 10},
            traffic=traffic_of(task.candidate, batch),
            mxu_busy=mxu_busy_cycles(task.candidate, batch),
            time_us=float(task.candidate.config.bkv_sz * batch.num_seqs),
        )
        for batch in task.batches
    )
    return SimulateAnswer(status=Status.OK, timelines=timelines, costs=changes)
