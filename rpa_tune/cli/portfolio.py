"""`rpa-tune portfolio`: what one more config in a row would gain, from the answers of a sweep."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.cli.options import ChipName
from rpa_tune.cli.output import print_json
from rpa_tune.cli.tables import clause_text
from rpa_tune.cli.workload_words import say_sources
from rpa_tune.decide.portfolio import Portfolio
from rpa_tune.decide.promote import study_curve
from rpa_tune.provenance import provenance
from rpa_tune.store import journal as store
from rpa_tune.store.codec import stamp_of
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import Study, build_studies

EXIT_NO_ANSWERS = 3


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--chip", type=ChipName(), help="Use this chip instead of the plan's.")
@click.option("--store", "store_file", type=click.Path(path_type=Path),
              help="Store with the results; default .rpa-tune/PLAN.jsonl.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def portfolio(plan_file: Path, chip: str | None, store_file: Path | None, as_json: bool) -> None:
    """Prints the best rules of 1, 2, 3, ... configs for each study of PLAN, and their regret.

    PLAN is a file, or the name of a plan that comes with rpa-tune. The regret is the time lost
    relative to the best known config for every batch of the workload. Only results of the installed
    kernels, simulator and compiler are used, at the highest fidelity available. Set
    `search.configs` in the plan to the number of configs that a row may have.

    Exit codes: 0 done; 2 usage; 3 the store has no results for some study.

    Example: rpa-tune portfolio quickstart
    """
    plan = load_plan(plan_file)
    if chip is not None:
        plan = replace(plan, chips=(chip,))
    evaluations = store.read(store_file or Path(".rpa-tune") / f"{plan.name}.jsonl").evaluations
    documents, is_short = [], False
    studies = build_studies(plan)
    say_sources(study.workload for study in studies)
    for study in studies:
        answers, others = answers_of(study, evaluations)
        curve = study_curve(answers, study.workload, study.family) if answers else ()
        is_short |= not curve
        document = _to_dict(study, answers, others, curve)
        documents.append(document)
        if not as_json:
            click.echo("\n".join(_lines(document)))
    if as_json:
        print_json(documents)
    if is_short:
        raise click.exceptions.Exit(EXIT_NO_ANSWERS)


def answers_of(
    study: Study, evaluations: Sequence[Evaluation]
) -> tuple[list[Evaluation], Counter[str]]:
    """The answers that decide about a study: those with a time, of the highest fidelity.

    Returns:
      (answers, why others that are about the study's problem were left out -> how many).
    """
    stamp = stamp_of(provenance(study.family.digest))
    fresh: dict[tuple[Fidelity, str], Evaluation] = {}
    others: Counter[str] = Counter()
    for answer in evaluations:
        c = answer.candidate
        if (c.family, c.problem, c.chip, c.workload) != (
            study.family, study.problem, study.chip, study.workload.digest
        ) or answer.fidelity not in (Fidelity.SIMULATED, Fidelity.MEASURED):  # fmt: skip
            continue
        if stamp_of(answer.provenance) != stamp:
            others["of other versions"] += 1
        else:
            fresh[answer.rung, c.digest] = answer
    top = max((fidelity for fidelity, _ in fresh), default=None)
    timed = [a for (fidelity, _), a in fresh.items() if fidelity is top and a.ok]
    if untimed := sum(fidelity is top for fidelity, _ in fresh) - len(timed):
        others["without a time"] = untimed
    return timed, others


def _to_dict(
    study: Study, answers: Sequence[Evaluation], others: Counter[str], curve: Sequence[Portfolio]
) -> dict[str, Any]:
    return {
        "study": study.name,
        "workload": study.workload.name,
        "workload_digest": study.workload.digest,
        "num_batches": len(study.workload.batches),
        "num_configs": len(answers),
        "fidelity": answers[0].fidelity.name.lower() if answers else None,
        "left_out": dict(others),
        "best_for_every_batch_us": curve[0].oracle_us if curve else None,
        "curve": [
            {
                "max_configs": k,
                "time_us": entry.time_us,
                "regret_pct": entry.regret_pct,
                "configs": [config_to_dict(config) for config in entry.configs],
                "rule": [clause.to_dict() for clause in entry.rule],
                "text": [
                    clause_text(clause, config_to_dict(entry.configs[clause.use]))
                    for clause in entry.rule
                ],
            }
            for k, entry in enumerate(curve, start=1)
        ],
    }


def _lines(document: dict[str, Any]) -> list[str]:
    left_out = "".join(f", {n} {why} left out" for why, n in document["left_out"].items())
    head = (
        f"{document['study']}: {document['num_configs']} configs {document['fidelity'] or ''} on "
        f"{document['num_batches']} batches of {document['workload']}{left_out}"
    )
    if not document["curve"]:
        return [f"{document['study']}: no results in the store{left_out}; run rpa-tune sweep first"]
    lines = [head, f"{'configs':>9}{'time us':>11}{'regret %':>10}  rule"]
    for entry in document["curve"]:
        first, *rest = entry["text"]
        lines.append(
            f"{entry['max_configs']:>9}{entry['time_us']:>11,.1f}{entry['regret_pct']:>10.2f}  "
            f"{first}"
        )
        lines += [f"{'':32}{text}" for text in rest]
    return lines
