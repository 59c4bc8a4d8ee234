"""What one pair of versions makes of a family's kernels; `run.py` starts it in each environment.

    python tests/versions/matrix.py FOLDER CHIPS FAMILY WORKERS

The family is compiled for each chip with its default config; the schedule is read, run on a batch,
and its copies are compared with the account (a difference is `not_understood`). Each answer is a
line of JSON on stdout as soon as it is there. FOLDER keeps the schedules, found again by the
lowered program, and the answers, by the digests of kernel and simulator and the versions: so a run
that was stopped goes on, and one after a change asks again what the change touches.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Fidelity
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import simulator_digest
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.watch import Watch
from rpa_tune.workload.batches import WeightedBatch, Workload

# Llama-3-8B on 4 devices: large enough that a time is more than what starts and ends a launch.
PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=64, max_num_tokens=256, max_num_seqs=16,
    pages_per_seq=32, num_pages=512, sm_scale=128**-0.5,
)  # fmt: skip
# The same on 8 devices, and DeepSeek-V3 on 16; with few tokens, because the code of these kernels
# grows with the query rows of a compute block, and so does the time that compiling it takes.
BLOCKWISE = replace(PROBLEM, num_q_heads=4, num_kv_heads=1, max_num_tokens=32)
LATENT = replace(
    PROBLEM, num_q_heads=8, num_kv_heads=1, head_dim=512, rope_dim=64, max_num_tokens=16,
    sm_scale=192**-0.5,
)  # fmt: skip
CONTEXTS = (1, 63, 64, 65, 700, 1024, 1500, 2048)
DECODE = Batch(q_lens=(1,) * 16, kv_lens=CONTEXTS * 2, num_decode=16)
# In the order in which they are run: prefill is last, because it is mixed's kernel with less code.
CASES = {
    "decode": (PROBLEM, DECODE),
    "mixed": (BLOCKWISE, Batch(q_lens=(1, 1, 10, 20), kv_lens=(1, 1500, 17, 2048), num_decode=2)),
    "mla-decode": (LATENT, DECODE),
    "mla-mixed": (LATENT, Batch(q_lens=(1, 1, 5, 9), kv_lens=(1, 1500, 17, 2048), num_decode=2)),
    "prefill": (
        BLOCKWISE,
        Batch(q_lens=(8,) * 4, kv_lens=(64, 700, 1024, 2048), num_decode=0, num_prefill=4),
    ),
}  # fmt: skip


def study_of(chip: str, family: str) -> Study:
    """What is asked of one family on one chip."""
    problem, batch = CASES[family]
    batches = (WeightedBatch(batch=batch, weight=1.0),)
    workload = Workload(name="versions", source="tests/versions", batches=batches)
    return Study(
        name=f"{chip} {family}", family=load_family(family), problem=problem,
        chip=load_chip(chip), workload=workload,
    )  # fmt: skip


def ask(study: Study, oracle: Oracle) -> dict[str, Any]:
    """The answer to a study's heuristic: one line of the output."""
    started = time.monotonic()
    sources = f"{study.family.digest} {simulator_digest()}"
    row: dict[str, Any] = {
        "chip": study.chip.name, "family": study.family.name, "sources": sources, "time_us": None,
    }  # fmt: skip
    config = study.heuristic()
    if isinstance(config, Infeasible):
        return row | {"status": "infeasible", "detail": str(config), "seconds": 0.0, "kept": False}
    answer = oracle.ask([study.candidate(config)], study, Fidelity.SIMULATED)[0]
    return row | {
        "status": answer.status.value,
        "detail": answer.detail,
        "time_us": answer.time_us,
        "seconds": round(time.monotonic() - started, 1),
        "kept": oracle.num_asked_by(study) == 0,
    }


def main(folder: str, chips: str, family: str, workers: str) -> None:
    """Compiles, simulates, and prints."""
    evaluator = SimulatedEvaluator(
        num_workers=int(workers), cache_dir=Path(folder), deadline_s=1200.0
    )
    studies = [study_of(chip, family) for chip in chips.split(",")]
    try:
        with (
            Journal(Path(folder) / "answers.jsonl") as journal,
            ThreadPoolExecutor(int(workers)) as threads,
        ):
            oracle = Oracle(
                evaluators={Fidelity.SIMULATED: evaluator}, journal=journal, watch=Watch()
            )
            for told in as_completed([threads.submit(ask, study, oracle) for study in studies]):
                print(json.dumps(told.result()), flush=True)
    finally:
        evaluator.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
