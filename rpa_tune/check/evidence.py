"""What a check measured, as answers that a machine model can be fitted to."""

from collections.abc import Mapping
from pathlib import Path

from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.check.record import CheckReport
from rpa_tune.errors import UsageError
from rpa_tune.workload.workload import Workload


def measured_answers(
    report: CheckReport, path: Path
) -> tuple[list[Evaluation], Mapping[str, Workload]]:
    """The measured kernels, and their batches by digest of the workload.

    Args:
      report: Of `read_report`.
      path: Where it is from, for messages.

    Raises:
      UsageError: It is a rehearsal, or has no measured time.
    """
    if report.identity.is_rehearsal:
        raise UsageError(
            "a rehearsal: its times are a CPU's, and nothing was measured", where=str(path),
            hint="run `rpa-tune tpu-check` on a TPU host",
        )  # fmt: skip
    answers, workloads = [], {}
    for _, times in report.times:
        assert times.measured_us is not None  # `read_report` holds times against the head
        digest = "" if times.simulated is None else times.simulated.schedule_digest
        answers.append(
            Evaluation(
                candidate=times.candidate,
                fidelity=Fidelity.MEASURED,
                status=Status.OK,
                time_us=times.measured_us,
                batch_us=(times.measured_us,),
                metrics={"is_steady": times.is_steady, "schedule_digest": digest},
                provenance={
                    **report.identity.versions,
                    "kernel": report.identity.sources.get(times.candidate.family.name),
                },
            )
        )
        workloads[times.workload.digest] = times.workload
    if not answers:
        raise UsageError("no kernel was measured", where=str(path))
    return answers, workloads
