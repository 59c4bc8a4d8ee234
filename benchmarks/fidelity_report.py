"""The tables of `fidelity.py` in Markdown. They show percent; the JSON has fractions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What stands above this line in a page is written by hand, and kept.
MARK = "<!-- tables of fidelity.py -->"


def write_into(page: Path, tables: str) -> None:
    """Puts the tables into a page, behind its mark or at its end."""
    text = page.read_text() if page.exists() else ""
    page.write_text(f"{text.partition(MARK)[0]}{MARK}\n\n{tables}")


def markdown(found: Mapping[str, Any]) -> str:
    """All tables."""
    lines = [
        "## Rows never used in the fit that predicts them",
        "",
        *_figures(found["by_chip"]),
        "",
        *_figures(found["by_chip_and_part"]),
        "",
        *_figures(found["by_chip_and_source"]),
        "",
        *_choices(found["choices"]),
        "",
        *_winners(found["winners"]),
    ]
    if found["forms"]:
        lines += ["", "## Forms of the model, each fitted without one source", ""]
        lines += _forms(found["forms"])
    lines += ["", "## What the fits give", "", *_fits(found["fits"])]
    lines += ["", "## Every row", "", *_rows(found["rows"])]
    return "\n".join(lines) + "\n"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _figures(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = (
        "rows", "n", "median error", "worst", "bias", "rank correlation", "in the 90 % interval",
        "half width",
    )  # fmt: skip
    return _table(
        names,
        (
            (
                name,
                str(part["n"]),
                f"{part['median_abs_error']:.1%}",
                f"{part['worst_abs_error']:.1%}",
                f"{part['bias']:+.1%}",
                "-" if part["rank_correlation"] is None else f"{part['rank_correlation']:.3f}",
                f"{part['interval_coverage']:.0%}",
                f"{part['interval_half_width']:.1%}",
            )
            for name, part in parts.items()
        ),
    )


def _choices(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = ((c["chip"], c["call"], str(c["tried"]), f"{c['regret']:.1%}") for c in found)
    return _table(("chip", "call", "blocks measured", "regret of the predicted best"), rows)


def _winners(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Public winners beside other blocks, both simulated."""
    if not found:
        return []
    behind = [one["behind"] for one in found]
    return [
        f"Of {len(found)} public winners, blocks that were found by measuring,"
        f" {sum(not share for share in behind)} are simulated as the best, by fits that saw none of"
        f" them; they are behind the best by {sum(behind) / len(behind):.1%} in the mean and"
        f" {max(behind):.1%} at worst. The other blocks have no public times.",
        "",
        *_table(
            ("row", "chip", "call", "pages of the winner", "of others, with their times", "behind"),
            (
                (
                    one["row"],
                    one["chip"],
                    one["call"],
                    f"{one['winner_pages']}: {one['winner_us']:.1f} us",
                    ", ".join(f"{pages}: {us:.1f}" for pages, us in one["others_us"].items()),
                    f"{one['behind']:.1%}",
                )
                for one in found
            ),
        ),
    ]


def _forms(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Median / worst error and bias on the source that was left out."""
    lines: list[str] = []
    for chip in dict.fromkeys(line["chip"] for line in found):
        mine = [line for line in found if line["chip"] == chip]
        sources = list(dict.fromkeys(line["without"] for line in mine))
        cells = {
            (line["form"], line["without"]): (
                f"{line['median_abs_error']:.1%} / {line['worst_abs_error']:.1%},"
                f" {line['bias']:+.1%}"
            )
            for line in mine
        }
        heads = [f"without {s}" if s != "none" else "fitted to all" for s in sources]
        rows = [
            (form, *(cells[form, source] for source in sources))
            for form in dict.fromkeys(line["form"] for line in mine)
        ]
        lines += [f"{chip}: median / worst error and bias on what was left out.", ""]
        lines += [*_table(("form", *heads), rows), ""]
    return lines[:-1]


def _fits(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        (chip, name, f"{number['value']:.4g}", f"{number['log_standard_error']:.0%}")
        for chip, fit in found.items()
        for name, number in fit.items()
        if isinstance(number, Mapping)
    ]
    return _table(("chip", "parameter", "value", "standard error"), rows)


def _rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        span = row["interval_us"]
        return (
            row["row"],
            row["chip"],
            row["part"],
            row["label"],
            f"{row['measured_us']:g}",
            f"{row['predicted_us']:.1f}",
            f"{span[0]:.1f} to {span[1]:.1f}" if span else "-",
            f"{row['error']:+.1%}",
            row["contradiction"] or row["held_out_with"],
        )

    names = (
        "row", "chip", "part", "call", "measured", "predicted", "90 % interval", "error",
        "held out with, or why no fit can use it",
    )  # fmt: skip
    return _table(names, map(cells, found))
