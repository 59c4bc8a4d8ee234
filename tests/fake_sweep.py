"""A sweep without a compiler: small problems, and evaluators that answer by formula."""

import hashlib
import json
import math
import time
from dataclasses import replace

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Correctness, Evaluation, Fidelity, Status
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.sweep.sampler import Search
from rpa_tune.sweep.study import Study
from rpa_tune.workload.workload import WeightedBatch, Workload

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=128, max_num_tokens=64,
    max_num_seqs=8, pages_per_seq=16, num_pages=128,
)  # fmt: skip
AXES = {
    "bkv_sz": (128, 256, 512, 1024), "bkv_csz": (128, 256, 512), "seqs_per_step": (1, 2, 4),
    "num_buffers": (2, 3), "bq_sz": (8,),
}  # fmt: skip


def make_workload(name="fake"):
    batches = (
        Batch(q_lens=(1, 1, 1), kv_lens=(100, 700, 1500), num_decode=3),
        Batch(q_lens=(1, 1), kv_lens=(128, 129), num_decode=2),
    )
    return Workload(
        name=name,
        source="made up",
        batches=tuple(WeightedBatch(batch=batch, weight=0.5) for batch in batches),
    )


def make_study(*, name="v6e/fake/decode", simulate=12, chip="v6e", problem=PROBLEM, **axes):
    return Study(
        name=name,
        family=load_family("decode"),
        problem=problem,
        chip=load_chip(chip),
        workload=make_workload(),
        overrides={**AXES, **axes},
        # To the last answer: what ends a search early has tests of its own.
        search=Search(simulate=simulate, wave=4, least_gain_pct=0, seed=0),
    )


def true_us(config):
    """A bowl over the axes with a little deterministic roughness; best at 512/256/2."""
    bowl = (
        (math.log2(config.bkv_sz) - 9) ** 2
        + (math.log2(config.bkv_csz) - 8) ** 2
        + (math.log2(config.seqs_per_step) - 1) ** 2
    )
    rough = hashlib.sha256(repr(config).encode()).digest()[0] / 255
    return 100.0 + 10.0 * bowl + 2.0 * rough + (5.0 if config.num_buffers == 2 else 0.0)


class FormulaEvaluator(AbstractEvaluator):
    """Answers `scale * true_us`, with statuses and delays on demand."""

    def __init__(self, fidelity, *, scale=1.0, delay_s=0.0, statuses=None, reverse=False):
        self._fidelity = fidelity
        self.scale, self.delay_s, self.reverse = scale, delay_s, reverse
        self.statuses = statuses or (lambda config: Status.OK)
        self.asked = []
        self.closed = False

    @property
    def fidelity(self):
        return self._fidelity

    def evaluate_all(self, candidates, workload):
        ordered = list(candidates)
        for candidate in reversed(ordered) if self.reverse else ordered:
            assert candidate.workload == workload.digest
            self.asked.append(candidate)
            time.sleep(self.delay_s)
            yield self.answer(candidate, len(workload.batches))

    def answer(self, candidate, num_batches=2):
        status = self.statuses(candidate.config)
        us = self.scale * true_us(candidate.config)
        return Evaluation(
            candidate=candidate,
            fidelity=self._fidelity,
            status=status,
            detail="" if status is Status.OK else f"made up: {status.value}",
            time_us=us if status is Status.OK else None,
            batch_us=(us,) * num_batches if status is Status.OK else (),
            metrics={"bound_by": "hbm"},
            provenance=stamp(candidate.family),
        )

    def close(self):
        self.closed = True


def answer_of_any_family(self, candidate, num_batches=2):
    """In place of `FormulaEvaluator.answer`: by block sizes that every family has."""
    us = 1000.0 / candidate.config.bkv_sz + candidate.config.bq_sz / 1000
    is_timed = self.fidelity is not Correctness.INTERPRETED
    return Evaluation(
        candidate=candidate,
        fidelity=self.fidelity,
        status=Status.OK,
        time_us=us if is_timed else None,
        batch_us=(us,) * num_batches if is_timed else (),
        metrics={"bound_by": "hbm", "how": "made up"},
        provenance=stamp(candidate.family),
    )


def stamp(family):
    """Today's versions without host and time, so that two runs write the same bytes."""
    from rpa_tune.provenance import provenance

    whole = provenance(family.digest)
    return {**{key: whole[key] for key in ("simulator", "verifier", "jax", "libtpu")},
            "kernel": family.digest, "time": "2026-01-02T03:04:05+00:00"}  # fmt: skip


class FakeInterpreter(FormulaEvaluator):
    """Says that every config is right, unless told otherwise."""

    def __init__(self, **options):
        super().__init__(Correctness.INTERPRETED, **options)

    def answer(self, candidate, num_batches=2):
        timed = super().answer(candidate, num_batches)
        return replace(timed, time_us=None, batch_us=(), metrics={"how": "made up"})


def make_evaluators(**simulated):
    return {
        Correctness.INTERPRETED: FakeInterpreter(),
        Fidelity.ANALYTICAL: FormulaEvaluator(Fidelity.ANALYTICAL, scale=0.8),
        Fidelity.SIMULATED: FormulaEvaluator(Fidelity.SIMULATED, **simulated),
    }


def stored_workload(folder) -> str:
    """The path of stored batches: decode and mixed sequences of few tokens, and no prefill ones."""
    batch = {"q_lens": [1, 5], "kv_lens": [9, 9], "num_decode": 1, "weight": 1.0}
    data = {"schema": "rpa-workload/1", "name": "w", "source": "made up", "batches": [batch]}
    path = folder / "w.json"
    path.write_text(json.dumps(data))
    return str(path)
