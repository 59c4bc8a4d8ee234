"""What one pair of versions makes of our kernels, as JSON on stdout; `run.py` starts it in each.

    python tests/versions/kernels.py CACHE CHIPS FAMILIES

Each family is compiled for each chip with its default config; the schedule is read, run on a batch,
and its copies are compared with the account (a difference is `not_understood`).
"""

import json
import sys
from pathlib import Path

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate.simulate_task import TASK, SimulateTask
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import versions

# Large enough that a time is more than what starts and ends a launch.
PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=64, max_num_tokens=256, max_num_seqs=16,
    pages_per_seq=32, num_pages=512, sm_scale=128**-0.5,
)  # fmt: skip
CONTEXTS = (1, 63, 64, 65, 700, 1024, 1500, 2048)
BATCHES = {
    "decode": Batch(q_lens=(1,) * 16, kv_lens=CONTEXTS * 2, num_decode=16),
    "prefill": Batch(q_lens=(64,) * 4, kv_lens=(64, 700, 1024, 2048), num_decode=0, num_prefill=4),
    "mixed": Batch(q_lens=(1, 1, 17, 200), kv_lens=(1, 1500, 17, 2048), num_decode=2),
}


def main(cache: str, chips: str, families: str) -> None:
    """Compiles, simulates, and prints."""
    tasks = []
    for chip in map(load_chip, chips.split(",")):
        for family in map(load_family, families.split(",")):
            config = family.default_config(PROBLEM, chip.target)
            candidate = Candidate(
                family=family, problem=PROBLEM, config=config, chip=chip, workload="versions"
            )
            batches = (BATCHES[family.name],)
            tasks.append(SimulateTask(candidate=candidate, batches=batches, cache_dir=Path(cache)))
    rows = []
    with WorkerPool(num_workers=1, deadline_s=600) as pool:
        for reply in pool.map_unordered(TASK, tasks):
            candidate = tasks[reply.index].candidate
            answer, failure = reply.value, reply.failure
            rows.append({
                "chip": candidate.chip.name,
                "family": candidate.family.name,
                "status": "failed" if failure else answer.status.value,
                "detail": failure.detail if failure else answer.detail,
                "time_us": answer.timelines[0].time_us if answer and answer.timelines else None,
            })  # fmt: skip
    print(json.dumps({"versions": versions(), "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
