"""Compiles for test_tpu_check.py. They run in worker processes."""

from dataclasses import replace

from rpa_tune.compile.dumps import schedule_digest
from rpa_tune.compile.lower import compile_call
from rpa_tune.evaluate.measure_task import launch_family


def simulated_and_measured(case):
    """Digests of a kernel's schedule in the program that is simulated, and in the one timed."""
    candidate = case.candidate
    call = candidate.family.call(candidate.problem, candidate.config, candidate.chip)
    launch = launch_family(candidate, case.batches[0])

    def timed(*arrays):
        return launch(*arrays, None)  # without sinks

    return [
        schedule_digest(compile_call(one, candidate.chip).bundles)
        for one in (call, replace(call, function=timed, donated=()))
    ]
