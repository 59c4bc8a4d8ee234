"""Stores made through the journal's own writer, by a sweep without a compiler."""

import hashlib
from dataclasses import replace

from fake_sweep import PROBLEM, FormulaEvaluator, make_evaluators, make_study

from rpa_tune.candidate import Fidelity
from rpa_tune.llo.engines import Owner
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch


class Detailed(FormulaEvaluator):
    """Answers with the metrics that a simulation has, told by the config."""

    def answer(self, candidate, num_batches=2):
        plain = super().answer(candidate, num_batches)
        if not plain.ok:
            return plain
        noise = hashlib.sha256(repr(candidate).encode()).digest()
        us = plain.time_us * (1 + noise[0] / 5000)
        cycles = {owner.name.lower(): 100 * noise[owner + 1] for owner in Owner}
        metrics = {
            "bound_by": "hbm", "mbu": 0.5, "vmem_bytes": 2**20 + noise[9], "set_us": [us] * 16,
            "cycles_by_owner": cycles, "total_cycles": sum(cycles.values()),
            "interval_us": [us * 0.9, us * 1.1],
        }  # fmt: skip
        batch_us = tuple(us * (1 + noise[10 + i] / 1000) for i in range(num_batches))
        return replace(plain, time_us=us, batch_us=batch_us, metrics=metrics)


def write_store(path, studies, *, scale=1.0, measured=()):
    """Sweeps the studies into a store; the best configs of some are measured at `measured`."""
    evaluators = {
        **make_evaluators(),
        Fidelity.SIMULATED: Detailed(Fidelity.SIMULATED, scale=scale),
    }
    with Journal(path) as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch())
        for result in sweep.run(studies):
            for factor, answer in zip(measured, result.answers, strict=False):
                times = {"time_us": answer.time_us * factor, "batch_us": answer.batch_us}
                journal.append(replace(answer, fidelity=Fidelity.MEASURED, **times))
    return path


def many_studies(number, **options):
    """Studies of different problems on two chips."""
    return [
        make_study(
            name=f"{chip}/model-{i}/decode",
            chip=chip,
            problem=replace(PROBLEM, max_num_tokens=64 + i),
            **options,
        )
        for i in range(number // 2)
        for chip in ("v6e", "v5e")
    ]
