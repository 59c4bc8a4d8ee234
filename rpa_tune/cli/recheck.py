"""`rpa-tune tables check`: are rows stale under what is installed? No TPU needed."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from rpa_tune.candidate import Correctness, Fidelity, Method
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import ChipName, NameChoice, cache_option, libtpu_args_option
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.recheck_across import across, passed_on
from rpa_tune.cli.recheck_write import write_found
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import ALL_FAMILIES, known_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import versions
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.recheck import RowCheck, ask, check_versions
from rpa_tune.sweep.watch import Answered, Event, Watch, WaveStarted
from rpa_tune.tables.key import TuningKey, timed_key
from rpa_tune.tables.reader import load_tables, shipped_folder
from rpa_tune.tables.row import TableRow
from rpa_tune.tables.writer import require_writable

EXIT_FINDINGS = 3
Answer = TypeVar("Answer")
_OPTIONS = (
    click.option("--chip", type=ChipName(), help="Only this chip."),
    click.option("--family", type=NameChoice(ALL_FAMILIES), help="Only this family."),
    click.option("--plan", "plan_files", multiple=True, type=click.Path(path_type=Path),
                 help="Sweep plan with the workload of nameless rows; repeatable."),
    click.option("--store", "store_file", type=click.Path(path_type=Path), show_default=True,
                 default=Path(".rpa-tune") / "check.jsonl", help="Answers are kept here."),
    cache_option,
    click.option("--workers", type=number("workers"), default=1, show_default=True,
                 help="Compiler processes."),
    libtpu_args_option,
)  # fmt: skip


def recompile_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of commands that ask rows again: which rows, and how."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--recompile", is_flag=True,
              help="Compile and simulate the rows' configs and the heuristics again.")  # fmt: skip
@recompile_options
@click.option("--sample", type=number("sample"),
              help="Only so many rows: of each chip and family in turn one that was not drawn, "
              "by the least digest of its key and of --seed; rows of one study once, before any "
              "of them twice.")  # fmt: skip
@click.option("--seed", default="", help="With --sample: another text draws other rows.")
@click.option("--python", "pythons", multiple=True, type=click.Path(path_type=Path),
              help="Also with the jax and libtpu of this Python; repeatable.")  # fmt: skip
@click.option("--write", "does_write", is_flag=True,
              help="Rows of FOLDER then say what other versions made of them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def check(
    folder: Path | None,
    recompile: bool,
    sample: int | None,
    seed: str,
    pythons: tuple[Path, ...],
    chip: str | None,
    family: str | None,
    plan_files: tuple[Path, ...],
    store_file: Path,
    cache: Path,
    workers: int,
    libtpu_args: str,
    does_write: bool,
    as_json: bool,
) -> None:
    """Finds rows of FOLDER, or of the shipped tables, that are stale under what is installed.

    Without --recompile only versions and workloads are compared; another jax under the same libtpu
    is said, and is no finding, because schedules are libtpu's. With it the rows are evaluated
    again. It reports schedules that changed, configs that no longer fit, and rows that today's
    heuristic beats. A row whose workload cannot be rebuilt is a finding, too: see --plan. Results
    are stored: after an interruption the same command resumes.

    With --python the same is asked under other pairs of jax and libtpu, each an environment that
    has rpa-tune, and the answers stand in one table: time, whether the row's config is still best
    of those that are asked, what no longer fits. With --write the evidence of the rows carries it,
    and `tables show` prints it; nothing else of a row changes.

    Exit codes: 0 nothing found; 2 usage; 3 findings, or a table does not parse.

    Example: rpa-tune tables check tuned_tables --recompile --chip v6e
    """
    _refuse_alone(folder, recompile, pythons, does_write)
    if pythons:
        words = passed_on(click.get_current_context())
        write_to = folder if does_write else None
        raise click.exceptions.Exit(across(words, pythons, store_file, as_json, write_to))
    plans = [load_plan(file) for file in plan_files]
    rows = choose_rows(folder or shipped_folder(), chip, family)
    if sample is not None:
        rows = sample_rows(rows, sample, seed)
    if recompile:
        fetch(rows, cache)
        evaluator = make_evaluator(workers, cache, libtpu_args)
        checks = _recompile(rows, plans, store_file, evaluator, workers, libtpu_args)
    else:
        checks = [check_versions(row, plans) for row in rows]
    document = {"versions": versions(), "rows": [_to_dict(found) for found in checks]}
    if does_write and folder:
        written = write_found(folder, [document])
        click.echo(f"{counted(written, 'row')} changed in {folder}", err=True)
    if as_json:
        print_json(document)
    else:
        click.echo("\n".join([*map(_text, checks), _summary(checks)]))
    if any(found.findings for found in checks):
        raise click.exceptions.Exit(EXIT_FINDINGS)


def _refuse_alone(
    folder: Path | None, recompile: bool, pythons: Sequence[Path], does_write: bool
) -> None:
    """Refuses options that mean nothing without others, before anything is compiled."""
    for name, given in (("--python", pythons), ("--write", does_write)):
        if given and not recompile:
            raise UsageError(f"{name} asks rows again", where=name, hint="add --recompile")
    if does_write:
        if folder is None:
            raise UsageError("--write needs FOLDER", where="--write", hint="name the tables")
        require_writable(folder)


def _recompile(
    rows: Sequence[TableRow],
    plans: Sequence[SweepPlan],
    store_file: Path,
    evaluator: AbstractEvaluator,
    workers: int,
    libtpu_args: str,
) -> list[RowCheck]:
    """Rows evaluated again; answers are kept in a store."""
    evaluators: dict[Method, AbstractEvaluator] = {Fidelity.SIMULATED: evaluator}
    with Journal(store_file) as journal:
        oracle = Oracle(evaluators=evaluators, journal=journal, watch=Lines(len(rows)))
        return list(
            ask_each(rows, lambda row: ask(row, oracle, plans, libtpu_args), oracle, workers)
        )


def make_evaluator(workers: int, cache: Path, libtpu_args: str = "") -> AbstractEvaluator:
    """Who compiles and simulates."""
    return SimulatedEvaluator(num_workers=workers, cache_dir=cache, libtpu_args=libtpu_args)


def choose_rows(folder: Path, chip: str | None, family: str | None) -> list[TableRow]:
    """The rows of a folder that the options name."""
    rows = load_tables([folder], chip=chip)
    return [row for row in rows if family in (None, row.key.family)]


def sample_rows(rows: Sequence[TableRow], number: int, seed: str = "") -> list[TableRow]:
    """A few rows, of as many chips and families as there are, in the order of the table.

    Chips and families take turns; of each, rows come in the order of a digest of key and seed, so
    that the sample of a table is the same everywhere and a row more changes it little. Of rows that
    one study filled, whose answers are the same, the first comes before the second of any.
    """
    turns: dict[tuple[str, str], list[tuple[str, TableRow]]] = {}
    for row in rows:
        drawn = hashlib.sha256(f"{seed} {row.key}".encode()).hexdigest()
        turns.setdefault((row.key.chip, row.key.family), []).append((drawn, row))
    ranked = []
    for place, group in turns.items():
        seen: Counter[TuningKey] = Counter()
        order = []
        for drawn, row in sorted(group, key=lambda pair: pair[0]):
            timed = timed_key(row.key, row.evidence.problem)
            order.append((seen[timed], drawn, row))
            seen[timed] += 1
        order.sort(key=lambda entry: entry[:2])
        ranked += [(rank, place, row) for rank, (*_, row) in enumerate(order)]
    chosen = sorted(ranked, key=lambda entry: entry[:2])[:number]
    return sorted((row for *_, row in chosen), key=lambda row: row.key)


def fetch(rows: Sequence[TableRow], cache: Path) -> None:
    """Has everything there that the rows' kernels need."""
    for name in sorted({row.key.family for row in rows}):
        if (family := known_family(name)) is not None:
            family.fetch(cache)


def ask_each(
    rows: Sequence[TableRow],
    question: Callable[[TableRow], Answer],
    oracle: Oracle,
    workers: int,
) -> Iterator[Answer]:
    """What a question to the oracle says of each row, in their order.

    Rows are asked side by side, as many as there are workers; the evaluators are closed at the end.
    """
    chips = [load_chip(name) for name in sorted({row.key.chip for row in rows})]
    with ThreadPoolExecutor(workers) as threads:
        try:
            for evaluator in oracle.evaluators.values():
                evaluator.prepare(chips)
            yield from threads.map(question, rows)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            oracle.stop()
            raise
        finally:
            for evaluator in oracle.evaluators.values():
                evaluator.close()


class Lines(Watch):
    """One line on stderr for each row and answer."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._num_begun = 0
        self._started = time.monotonic()

    def tell(self, event: Event) -> None:
        """A row begins or is about to be verified, or one of its configs has an answer."""
        match event:
            case WaveStarted(study=study, num=num, num_known=num_known):
                known = f", {num_known} already stored" if num_known else ""
                if event.fidelity is Correctness.INTERPRETED:
                    self._say(f"{study.name}: verifying {counted(num, 'config')}{known}")
                    return
                self._num_begun += 1
                number_of = f"row {self._num_begun} of {self._num_rows}"
                self._say(f"{number_of}: {study.name}: {counted(num, 'config')}{known}")
            case Answered(study=study, evaluation=answer):
                found = f"{answer.time_us:.1f} us" if answer.time_us else answer.status.value
                self._say(f"{study.name}: {found}")

    def _say(self, text: str) -> None:
        click.echo(f"[{time.monotonic() - self._started:6.1f} s] {text}", err=True)


def _text(found: RowCheck) -> str:
    """A row on one line, its findings below."""
    if found.time_us is None:
        same = (
            "same libtpu and kernel" if found.is_other_jax_alone else "same jax, libtpu and kernel"
        )
        what = "not evaluated" if found.findings else same
    else:
        then = found.row.evidence.time_us
        what = f"{found.time_us:,.1f} us (row: {then:,.1f} us), schedule {found.schedule}"
        if found.heuristic_us is not None:
            what += f", {found.heuristic_us / found.time_us:.2f}x today's heuristic"
        else:
            what += ", today's heuristic has no time"
    lines = [f"{finding.rule}: {finding.message}" for finding in found.findings]
    for one in found.overtaken_by:
        fields = ", ".join(f"{name}={value}" for name, value in one.config.items())
        times = f"{one.then_us:,.1f} us before, {one.time_us:,.1f} us now"
        lines.append(f"order changed: a runner-up is faster today: {times}: {fields}")
    older = [f"{name} {then or '?'} -> {now or '?'}" for name, (then, now) in found.older.items()]
    alone = "; jax alone changes no schedule" if found.is_other_jax_alone else ""
    lines += [f"since: {', '.join(older)}{alone}"] if older else []
    return "\n  ".join([f"{found.row.where}: {what}", *lines])


def _summary(checks: Sequence[RowCheck]) -> str:
    rules = Counter(finding.rule for found in checks for finding in found.findings)
    if not checks:
        return "no rows: nothing was checked"
    text = ", ".join(f"{count} {rule}" for rule, count in sorted(rules.items())) or "no findings"
    unknown = sum(found.time_us is not None and found.schedule == "unknown" for found in checks)
    note = f"; {unknown} without a digest of their schedules" if unknown else ""
    if other_jax := sum(found.is_other_jax_alone for found in checks):
        note += f"; {other_jax} made with another jax, under the same libtpu"
    return f"{counted(len(checks), 'row')}: {text}{note}"


def _to_dict(found: RowCheck) -> dict[str, Any]:
    key = found.row.key
    return {
        "where": found.row.where,
        "chip": key.chip,
        "family": key.family,
        "key": key.to_dict(),
        "older": {name: {"then": a, "now": b} for name, (a, b) in found.older.items()},
        "other_jax_alone": found.is_other_jax_alone,
        "schedule": found.schedule,
        "time_us_then": found.row.evidence.time_us,
        "time_us": found.time_us,
        "heuristic_us": found.heuristic_us,
        "runners_up": [asdict(one) for one in found.runners_up],
        "overtaken": bool(found.overtaken_by),
        "findings": [asdict(finding) for finding in found.findings],
    }
