"""What a sweep would cost, said by `rpa-tune sweep --dry-run`."""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.cli.output import print_json
from rpa_tune.evaluate.interpreted import stand_in
from rpa_tune.families import public_family
from rpa_tune.padding import padding_note
from rpa_tune.provenance import provenance
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.doubt import TRANSIENT
from rpa_tune.sweep.study import Study

# Compile and simulate one candidate, and check one config under the interpreter, until the store
# has times of its own. Guesses.
_GUESSED_CANDIDATE_S = 8.0
_GUESSED_CHECK_S = 20.0


def forecast(
    studies: Sequence[Study],
    known: Sequence[Evaluation],
    workers: int,
    *,
    verify: bool,
) -> list[dict[str, Any]]:
    """What each study would cost, from its space and what is known.

    Args:
      studies: Those of this run.
      known: Answers of the store.
      workers: Processes at once.
      verify: Whether winners are checked; a check counts as often as a row may have configs.
    """
    simulated = [e for e in known if e.fidelity is Fidelity.SIMULATED and e.status not in TRANSIENT]
    seconds = [e.metrics["evaluate_s"] for e in simulated if "evaluate_s" in e.metrics]
    each_s = sum(seconds) / len(seconds) if seconds else _GUESSED_CANDIDATE_S
    checks = [e for e in known if e.fidelity is Fidelity.INTERPRETED]
    took = [e.metrics["evaluate_s"] for e in checks if "evaluate_s" in e.metrics]
    check_s = sum(took) / len(took) if took else _GUESSED_CHECK_S
    checked = {(e.candidate.digest, stamp_of(e.provenance, e.fidelity)) for e in checks}
    rows = []
    for study in studies:
        space = study.space()
        num_simulated = min(study.search.simulate, len(space.configs))
        stamp = stamp_of(provenance(study.family))
        check_stamp = stamp_of(provenance(study.family), Fidelity.INTERPRETED)
        num_known = sum(_belongs(e, study) and stamp_of(e.provenance) == stamp for e in simulated)
        todo = max(0, num_simulated - num_known)
        right = sum(
            (stand_in(e.candidate)[0].digest, check_stamp) in checked
            for e in simulated
            if e.ok and _belongs(e, study) and stamp_of(e.provenance) == stamp
        )
        is_checked = verify and public_family(study.family) is None
        num_checks = study.search.configs if is_checked and (todo or not right) else 0
        rows.append(
            {
                "study": study.name,
                "padding": padding_note(study.problem),
                "grid": space.num_points,
                "feasible": len(space.configs),
                "rejected": dict(space.rejected),
                "simulate_at_most": num_simulated,
                "known": num_known,
                "verify_at_most": num_checks,
                "seconds": round((todo * each_s + num_checks * check_s) / workers, 1),
                "seconds_are": "from the store" if seconds else "a guess",
            }
        )
    return rows


def _belongs(evaluation: Evaluation, study: Study) -> bool:
    candidate = evaluation.candidate
    return (candidate.family, candidate.problem, candidate.chip, candidate.workload) == (
        study.family, study.problem, study.chip, study.workload.digest
    )  # fmt: skip


def print_forecast(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"studies": rows})
        return
    table = Table("study", "grid", "feasible", "simulate at most", "known", "seconds")
    for row in rows:
        table.add_row(
            row["study"], f"{row['grid']:,}", f"{row['feasible']:,}",
            str(row["simulate_at_most"]), str(row["known"]), f"{row['seconds']:g}",
        )  # fmt: skip
    Console().print(table)
    for row in rows:
        if row["padding"]:
            click.echo(f"{row['study']}: {row['padding']}")
        for limit, count in sorted(row["rejected"].items(), key=lambda item: -item[1]):
            click.echo(f"{row['study']}: {count:,} configs are infeasible: {limit}")
    total = sum(row["seconds"] for row in rows)
    click.echo(f"about {total:g} s in total ({rows[0]['seconds_are']}); nothing was run")
