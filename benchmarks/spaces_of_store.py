"""The spaces that a sweep has answered, as files for `expected_loss.py`: no compiler runs.

    python benchmarks/spaces_of_store.py STORE.jsonl ... --into benchmarks/neighbour_spaces

One file for each study that has ended with enough simulated configs: those that the search asked
for, winners of neighbouring problems among them (`sweep/seeds.py`), so that many a neighbour's best
is one of them.
"""

import dataclasses
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.store.journal import read
from rpa_tune.tables.key import tuning_key

SCHEMA = "rpa-truth/1"


def by_study(answers: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """`Candidate.study` -> its simulated answers, the last one of each config.

    Answers of older kernels or simulators are left out: of a study, those made as the last one was.
    """
    found: dict[str, dict[Any, Evaluation]] = {}
    for answer in answers:
        if answer.fidelity is Fidelity.SIMULATED:
            found.setdefault(answer.candidate.study, {})[answer.candidate.config] = answer
    return {study: _made_alike(list(known.values())) for study, known in found.items()}


def _made_alike(answers: list[Evaluation]) -> list[Evaluation]:
    made = ("kernel", "simulator", "jax", "libtpu")
    last = max(answers, key=lambda answer: answer.provenance["time"]).provenance
    return [a for a in answers if all(a.provenance[name] == last[name] for name in made)]


def truth(answers: list[Evaluation]) -> dict[str, Any]:
    """A study's answers as plain numbers; what `record.py` writes, without bounds."""
    candidate = answers[-1].candidate
    return {
        "schema": SCHEMA,
        "study": candidate.study,
        "workload_digest": candidate.workload,
        "problem": candidate.problem.to_dict(),
        "chip": candidate.chip.name,
        "family": candidate.family.name,
        "provenance": answers[-1].provenance,
        "configs": [
            {
                "config": dataclasses.asdict(answer.candidate.config),
                "time_us": answer.time_us,
                "status": answer.status.value,
            }
            for answer in answers
        ],
    }


def name_of(document: dict[str, Any], answer: Evaluation) -> str:
    """A file's name: what is attended to, and which study."""
    candidate = answer.candidate
    key = tuning_key(candidate.problem, candidate.chip.name, candidate.family.name)
    words = [key.chip, key.family, f"{key.num_q_heads}-{key.num_kv_heads}-heads-of-{key.head_dim}"]
    words += [f"window-{key.sliding_window_tokens}"] if key.sliding_window_tokens else []
    return "_".join([*words, document["study"]])


@click.command()
@click.argument("stores", metavar="STORE...", type=click.Path(path_type=Path, exists=True),
                nargs=-1, required=True)  # fmt: skip
@click.option("--least", default=3, show_default=True, help="Timed configs of a study, at least.")
@click.option("--into", "folder", type=click.Path(path_type=Path), required=True)
def main(stores: tuple[Path, ...], least: int, folder: Path) -> None:
    """Writes a truth for every study of stores that has ended with enough of them."""
    known = [read(store) for store in stores]
    ended = {note.study for one in known for note in one.notes}
    found = by_study(answer for one in known for answer in one.evaluations)
    for study, answers in found.items():
        if study not in ended or sum(a.time_us is not None for a in answers) < least:
            continue
        document = truth(answers)
        path = folder / f"{name_of(document, answers[-1])}.truth.json.gz"
        text = json.dumps(document, separators=(",", ":")).replace("},{", "},\n{") + "\n"
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        click.echo(path)


if __name__ == "__main__":
    main()
