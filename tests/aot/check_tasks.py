"""Compiles for test_tpu_check.py and test_own_call.py. They run in worker processes."""

from dataclasses import replace

from rpa_tune.compile.dumps import schedule_digest
from rpa_tune.compile.lower import compile_call
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.dispatch.runtime import flat_call
from rpa_tune.evaluate.measure_task import launch_family
from rpa_tune.families.family import Call
from rpa_tune.families.own_call import abstract_inputs
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip


def simulated_and_measured(case):
    """Digests of a kernel's schedule in the program that is simulated, and in the one timed."""
    candidate = case.candidate
    call = candidate.family.call(candidate.problem, candidate.config, candidate.chip)
    launch = launch_family(candidate, case.batches[0])

    def timed(*arrays):
        return launch(*arrays, None)  # without sinks

    return [
        schedule_digest(compile_call(one, candidate.chip).bundles)
        for one in (
            call,
            replace(call, function=timed, donated=(), arguments=abstract_inputs(candidate.problem)),
        )
    ]


def simulated_and_served(task):
    """What is simulated of a launch, and of the whole call that an engine runs: digest and VMEM."""
    family, problem, chip = load_family(task[0]), task[1], load_chip(task[2])
    config = family.default_config(problem, chip.target)
    alone = family.call(problem, config, chip)
    plan = LaunchPlan(
        problem=problem,
        target=chip.target,
        launches=(Launch(family=family.name, config=config),),
    )
    function, donated = flat_call(plan)
    served = Call(
        function=function,
        arguments=abstract_inputs(problem),
        kernel_name=alone.kernel_name,
        donated=donated,
    )
    return [
        (schedule_digest(compiled.bundles), compiled.vmem_bytes, compiled.vmem_spill_bytes)
        for compiled in (compile_call(call, chip) for call in (alone, served))
    ]
