"""`rpa-tune report`: stores as a page of charts."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from rpa_tune.cli.output import print_json
from rpa_tune.errors import UsageError, install_command
from rpa_tune.files import write_whole


@click.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("-o", "--output", default="report.html", show_default=True,
              type=click.Path(path_type=Path, dir_okay=False), help="File to write.")  # fmt: skip
@click.option("--title", default="", help="Title of the page; default: the names of the stores.")
@click.option("--gains", "only_gains", is_flag=True,
              help="Print how much the best configs gain over the heuristic, by chip, family and "
              "model, instead of drawing a page.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="With --gains: print JSON.")
def report(
    stores: tuple[Path, ...], output: Path, title: str, only_gains: bool, as_json: bool
) -> None:
    """Draws the studies of STORES as one HTML file that needs no network.

    For each study: the space with what cannot exist and why, where the time of the best configs
    goes, which axes matter, the time of each batch, and the search beside the bound. For the run:
    speed-ups over the heuristic with verdicts, coverage, and predicted against measured times.

    With --gains no page is made: the distribution of the gain over the heuristic is printed, with
    the evaluator's error, and a list of studies where the heuristic loses more than 10 %.

    Of several stores, the first is compared with each other one: two versions of libtpu, two
    commits or two chips side by side.

    Exit codes: 0 done; 1 no such store, or not a store; 2 nothing to report.

    Example: rpa-tune report .rpa-tune/quickstart.jsonl -o report.html
    """
    if as_json and not only_gains:
        raise UsageError("--json is for --gains: a page has its data in it", hint="add --gains")
    with needs_report_extra():
        from rpa_tune.report.document import load_all, make_document
        from rpa_tune.report.gains import gains, gains_text, gains_to_dict
        from rpa_tune.report.html import render
    views = load_all(stores)
    if only_gains:
        found = gains(views)
        if as_json:
            print_json(gains_to_dict(found))
        else:
            click.echo("\n".join(gains_text(found)))
        return
    named = title or "rpa-tune: " + ", ".join(store.stem for store in stores)
    page = render(make_document(views, title=named))
    write_whole(output, page.encode())
    size = len(page) / 1e6
    studies = "1 study" if len(views) == 1 else f"{len(views):,} studies"
    click.echo(f"{output}: {studies}, {size:.1f} MB; open it in a browser", err=True)


@contextlib.contextmanager
def needs_report_extra() -> Iterator[None]:
    """Says how to install the plotting library where it is missing.

    Raises:
      UsageError: It is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a report needs the package {error.name!r}, which is not installed",
            hint=install_command("report"),
        ) from error
