"""`rpa-tune tables`: look into table files and check them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from rpa_tune.analysis.lint_rows import RowKernel, kernels_of, lint_kernels
from rpa_tune.analysis.verify import wants_lint
from rpa_tune.candidate import Status
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import ChipName, NameChoice, cache_option
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.recheck import EXIT_FINDINGS, check, choose_rows, sample_rows
from rpa_tune.cli.restamp import restamp
from rpa_tune.compile.lint import TARGETS, Lint
from rpa_tune.errors import TableError, UsageError
from rpa_tune.families.registry import ALL_FAMILIES, known_family, load_family
from rpa_tune.interop.export import EXPORTERS
from rpa_tune.interop.export_rows import OURS
from rpa_tune.interop.tokamax_tables import export_tables as export_tokamax
from rpa_tune.models.padding import padding_note
from rpa_tune.sweep.plan import load_plan
from rpa_tune.tables.changes import diff_tables
from rpa_tune.tables.lint import Finding, lint_folder
from rpa_tune.tables.other_versions import other_versions_text
from rpa_tune.tables.reader import load_tables, shipped_folder
from rpa_tune.tables.row import Clause, TableRow
from rpa_tune.tables.writer import merge_into

_FOLDER = click.Path(path_type=Path)


@click.group()
def tables() -> None:
    """Shows, checks, restamps, compares, merges and exports tuned tables.

    Example: rpa-tune tables show --chip v6e
    """


@tables.command()
@click.argument("folder", required=False, type=_FOLDER)
@click.option("--chip", type=ChipName(), help="Only this chip.")
@click.option("--family", type=NameChoice(ALL_FAMILIES), help="Only this family.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def show(folder: Path | None, chip: str | None, family: str | None, as_json: bool) -> None:
    """Prints the rows of FOLDER, or of the shipped tables.

    Exit codes: 0 done; 2 usage; 3 a table does not parse.

    Example: rpa-tune tables show tuned_tables --chip v6e --family decode
    """
    rows = [
        row
        for row in load_tables([folder or shipped_folder()], chip=chip)
        if family in (None, row.key.family)
    ]
    if as_json:
        print_json([_to_dict(row) for row in rows])
        return
    for row in rows:
        notes = [note] if (note := padding_note(row.key)) else []
        evidence = [_evidence_text(row), regret_text(row)]
        if row.evidence.other_versions:
            evidence.append(other_versions_text(row.evidence.other_versions))
        click.echo("\n  ".join([str(row.key), *notes, *config_lines(row), *evidence]))
    click.echo(counted(len(rows), "row"))


@tables.command()
@click.argument("folder", required=False, type=_FOLDER)
@click.option(
    "--kernels",
    is_flag=True,
    help="Also have the compiler's own linter look at the rows' kernels (libtpu 0.0.52).",
)
@click.option("--chip", type=ChipName(), help="With --kernels: only those of this chip.")
@click.option(
    "--family", type=NameChoice(ALL_FAMILIES), help="With --kernels: only those of this family."
)
@click.option(
    "--sample",
    type=number("sample"),
    help="With --kernels: only those of so many rows, chosen as by `tables check --sample`.",
)
@click.option(
    "--plan",
    "plan_files",
    multiple=True,
    type=_FOLDER,
    help="With --kernels: sweep plan with the workload of nameless old rows; repeatable.",
)
@cache_option
@click.option(
    "--workers",
    type=number("workers"),
    default=1,
    show_default=True,
    help="With --kernels: compiler processes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def lint(
    folder: Path | None,
    kernels: bool,
    chip: str | None,
    family: str | None,
    sample: int | None,
    plan_files: tuple[Path, ...],
    cache: Path,
    workers: int,
    as_json: bool,
) -> None:
    """Checks that every row parses, fits its chip, can be looked up, and is not stale.

    With --kernels every config of every row is compiled, too, under the compiler's own linter:
    copies that race with each other, loads and stores past the end of a buffer. What several rows
    share is compiled once, and what has no finding is kept: a run that was stopped goes on.

    Exit codes: 0 nothing found; 2 usage; 3 findings.

    Example: rpa-tune tables lint tuned_tables
    """
    folder = _existing(folder or shipped_folder())
    if kernels:
        wants_lint(True, "--kernels")
    findings = lint_folder(folder, {name: load_family(name).digest for name in ALL_FAMILIES})
    linted: list[tuple[RowKernel, Lint]] = []
    if kernels:
        rows = choose_rows(folder, chip, family)
        rows = rows if sample is None else sample_rows(rows, sample)
        linted = _lint(kernels_of(rows, [load_plan(file) for file in plan_files]), cache, workers)
        findings += [found for one in linted for found in _findings(*one)]
    num_files = len(list(folder.glob("*/*.jsonl")))
    if as_json:
        found = {"files": num_files, "findings": [asdict(finding) for finding in findings]}
        more = {"kernels": [place for one in linted for place in _linted(*one)]} if kernels else {}
        print_json(found | more)
    else:
        for finding in findings:
            click.echo(str(finding))
        checked = f"{counted(num_files, 'file')}, {counted(len(findings), 'finding')}"
        if kernels:
            rows_text = counted(
                len({row.where for one, _ in linted for row, _ in one.places}), "row"
            )
            checked += f"; {counted(len(linted), 'kernel')} of {rows_text} linted"
            checked += f" ({', '.join(TARGETS)})"
        click.echo(checked if num_files else "no files: nothing was checked")
    if findings:
        raise click.exceptions.Exit(EXIT_FINDINGS)


def _lint(kernels: Sequence[RowKernel], cache: Path, workers: int) -> list[tuple[RowKernel, Lint]]:
    """What the linter says of kernels; each is told on stderr when it is there."""
    started, linted = time.monotonic(), []
    for one, lint in lint_kernels(kernels, cache=cache, workers=workers):
        linted.append((one, lint))
        head = f"[{time.monotonic() - started:6.1f} s] {len(linted)} of {len(kernels)}"
        click.echo(f"{head}: {one}: {lint.kind or lint.status.value}", err=True)
    return linted


def _findings(one: RowKernel, lint: Lint) -> Iterator[Finding]:
    said = lint.kind or lint.status.value
    for row, config in one.places if lint.status is not Status.OK else ():
        message = f"configs[{config}]: {said}: {lint.detail}"
        yield Finding(rule="kernel", where=row.where, message=message)


def _linted(one: RowKernel, lint: Lint) -> Iterator[dict[str, object]]:
    for row, config in one.places:
        yield {"where": row.where, "config": config, **asdict(lint)}


tables.add_command(check)
tables.add_command(restamp)


@tables.command()
@click.argument("old", type=_FOLDER)
@click.argument("new", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Lists the rows that differ between the folders OLD and NEW, with their fields.

    Exit codes: 0 the same; 1 they differ; 2 usage; 3 a table does not parse.

    Example: rpa-tune tables diff tuned_tables.before tuned_tables
    """
    changes = diff_tables(load_tables([_existing(old)]), load_tables([_existing(new)]))
    if as_json:
        print_json([change.to_dict() for change in changes])
    else:
        for change in changes:
            click.echo(str(change))
        click.echo(f"{counted(len(changes), 'row')} changed")
    if changes:
        raise click.exceptions.Exit(1)


@tables.command()
@click.argument("folder", required=False, type=_FOLDER)
@click.option(
    "--format", "form", required=True, type=NameChoice(EXPORTERS), help="Format to write."
)
@click.option("--chip", type=ChipName(), help="Only this chip.")
@click.option(
    "--num-pages",
    type=number("num_pages"),
    help="With --format tokamax: pages of your KV cache, which its keys hold; else the sweep's.",
)
@click.option("--output", type=click.Path(path_type=Path), help="File instead of stdout.")
def export(
    folder: Path | None, form: str, chip: str | None, num_pages: int | None, output: Path | None
) -> None:
    """Prints the rows of public kernels in a format that a serving engine reads.

    Rows that the format cannot represent are listed on stderr with the reason.

    Exit codes: 0 every row of a public kernel was exported; 2 usage; 3 some were left out, there
    were none, or a table does not parse.

    Example: rpa-tune tables export tuned_tables --format tpu-inference --chip v6e
    """
    if num_pages is not None and form != "tokamax":
        raise UsageError(
            f"--num-pages={num_pages} says nothing to --format {form}",
            hint="leave it out: only tokamax's keys hold the pages of a cache",
        )
    rows = load_tables([_existing(folder or shipped_folder())], chip=chip)
    found = EXPORTERS[form](rows) if num_pages is None else export_tokamax(rows, num_pages)
    if output is None:
        click.echo(found.text, nl=False)
    else:
        output.write_text(found.text, encoding="utf-8")
    ours = [left for left in found.left_out if left.why == OURS]
    public = [left for left in found.left_out if left.why != OURS]
    for left in public:
        click.echo(f"left out: {left.row.key}: {left.why}", err=True)
    if ours:
        click.echo(f"left out: {len(ours)} {OURS}", err=True)
    click.echo(
        f"{counted(len(found.exported), 'row')} exported, {len(found.left_out)} left out", err=True
    )
    if public or not found.exported:
        raise click.exceptions.Exit(EXIT_FINDINGS)


@tables.command()
@click.argument("sources", nargs=-1, required=True, type=_FOLDER)
@click.option("--into", "target", required=True, type=_FOLDER, help="Folder to write to.")
def merge(sources: tuple[Path, ...], target: Path) -> None:
    """Copies the rows of the folders SOURCES into another; for equal keys the last source wins.

    Exit codes: 0 done; 2 usage; 3 a table does not parse.

    Example: rpa-tune tables merge night_1 night_2 --into tuned_tables
    """
    merged = load_tables([_existing(source) for source in sources])
    changed = merge_into(target, merged)
    for path in changed:
        click.echo(f"wrote {path}")
    click.echo(f"{counted(len(merged), 'row')} merged, {counted(len(changed), 'file')} changed")


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise TableError("no such table folder", where=str(folder))
    return folder


def _to_dict(row: TableRow) -> dict[str, object]:
    place = {"chip": row.key.chip, "family": row.key.family, "where": row.where}
    made_for = {"padding": padding_note(row.key), "is_stale": _is_stale(row)}
    return {**place, **made_for, **row.to_dict()}


def _is_stale(row: TableRow) -> bool:
    """Whether its times are those of other kernels than today's."""
    family = known_family(row.key.family)
    return family is None or row.evidence.kernel_digest != family.digest


def _evidence_text(row: TableRow) -> str:
    """Why, on one line."""
    evidence = row.evidence
    speedup = "" if evidence.speedup is None else f", {evidence.speedup:.2f}x the heuristic"
    bound = f", bound by {evidence.bound_by}" if evidence.bound_by else ""
    return (
        f"{evidence.verdict}: {evidence.fidelity} {evidence.time_us:,.1f} us{speedup}{bound}; "
        f"{workload_text(row)}, libtpu {evidence.libtpu}, {evidence.date}; "
        f"{verified_text(row)}{'; made with other kernels' if _is_stale(row) else ''}"
    )


def _unverified(row: TableRow) -> str:
    """Why its configs are not compared with the reference; empty if they are."""
    family = known_family(row.key.family)
    return family.unverified if family else ""


def workload_text(row: TableRow) -> str:
    """Which batches a row was tuned on."""
    evidence = row.evidence
    return f"workload {evidence.workload} {evidence.workload_digest} ({evidence.workload_source})"


def verified_text(row: TableRow) -> str:
    """Whether and how a row's configs were compared with the reference."""
    if what := _unverified(row):
        return f"a {what}: not compared with the reference"
    return f"verified: {row.evidence.verified}" if row.evidence.verified else "not verified"


def verdict_text(row: TableRow) -> str:
    """The verdict, and whether it was verified where that is ours to do."""
    alone = ", no other config had a time" if row.evidence.num_candidates < 2 else ""
    if what := _unverified(row):
        return f"{row.evidence.verdict}{alone}, {what}"
    checked = "verified" if row.evidence.verified else "not verified"
    return f"{row.evidence.verdict}{alone}, {checked}"


def uses_text(rows: Sequence[TableRow], folder: Path) -> str:
    """What can be done with rows: ours are dispatched, those of public kernels exported."""
    texts = []
    launched = [row for row in rows if load_family(row.key.family).is_launched]
    if chips := sorted({row.key.chip for row in launched}):
        use = f'rpa_tune.load_dispatcher(chip="{chips[0]}", tables="{folder}")'
        texts.append(f"Use them: {use}")
    if len(launched) < len(rows):
        texts.append(f"For the public kernels: rpa-tune tables export {folder} --format kwargs")
    return "; ".join(texts)


def config_lines(row: TableRow) -> list[str]:
    """One line per clause of the rule, with the config it uses."""
    return [clause_text(clause, row.configs[clause.use]) for clause in row.rule]


def clause_text(clause: Clause, config: Mapping[str, int]) -> str:
    """`longest_context_tokens <= 2048: bkv_sz=256, ...`."""
    condition = f"{clause.feature} <= {clause.at_most}: " if clause.feature else ""
    return condition + ", ".join(f"{name}={value}" for name, value in config.items())


def regret_text(row: TableRow) -> str:
    """What the row loses against the best config for every batch, and what others would."""
    evidence = row.evidence
    others = ", ".join(
        f"{k} configs {regret:g} %" if k > 1 else f"1 config {regret:g} %"
        for k, regret in enumerate(evidence.regret_by_num_configs_pct, start=1)
    )
    tried = f" of {evidence.num_candidates} tried"
    rest = f" (best of at most {others})" if others else ""
    return f"regret {evidence.regret_pct:g} %{tried}{rest}"
