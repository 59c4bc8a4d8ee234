"""The README's picture of the fleet: what the rows that ship gain, by model, devices and chip.

A square is a server of a plan, as its engine starts by default but for the cache's dtype. It says
how much faster the attention of all its layers is with the rows' configs than with the heuristic
that they were compared with, in the step with most tokens. A square is blank where a kind of layers
has no row of its own. Beside them stands how far the simulator is from public device times
(`benchmarks/fidelity.py`). Needs the extra `report`.

```
.venv/bin/python benchmarks/fleet_picture.py docs/fleet.svg
```
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from rpa_tune.dispatch.select import rests_on_default
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chips
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan
from rpa_tune.tables.key import tuning_key
from rpa_tune.tables.reader import Tables, load_tables, shipped_folder
from rpa_tune.tables.row import TableRow

FIDELITY = Path(__file__).parent / "results" / "fidelity.json"
_GREEN, _GREY = "#1b7f4b", "#8a94a6"
_SQUARE = 46  # pixels


def gains(tables: Tables, servers: Iterable[Server], family: str) -> list[dict[str, Any]]:
    """Model, chip, devices and gain of every server whose layers all have rows.

    Args:
      tables: What is looked up; nearest rows do not count.
      servers: Of one model, chip and number of devices only the first is shown.
      family: Kernel family.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    chips = {row.key.chip for row in tables if row.key.family == family}
    for server in servers:
        place = server.model, server.chip, server.tp
        rows = [] if place in found or server.chip not in chips else _rows(tables, server, family)
        if not rows:
            continue
        then = sum(layers * (row.evidence.heuristic_us or 0.0) for row, layers in rows)
        now = sum(layers * row.evidence.time_us for row, layers in rows)
        evidence = rows[0][0].evidence
        found[place] = {
            "model": server.model,
            "chip": server.chip,
            "tp": str(server.tp),
            "gain_pct": round(100 * (then / now - 1), 1),
            "error_pct": evidence.error_pct,
            "is_today": all(rests_on_default(row, server.loaded_chip.target) for row, _ in rows),
            "made_with": f"jax {evidence.jax}, libtpu {evidence.libtpu}",
        }
    return list(found.values())


def _rows(tables: Tables, server: Server, family: str) -> list[tuple[TableRow, int]]:
    """The row of each kind of layers, with their number; none if one has no row or no time."""
    largest: dict[str, tuple[TableRow | None, int]] = {}
    for share, problem in server.problems():
        row = tables.exact(tuning_key(problem, server.chip, family))
        if row is not None and row.evidence.heuristic_us is None:
            row = None
        largest[share.name] = row, share.kind.num_layers or 1  # the last shape has most tokens
    rows = [(row, layers) for row, layers in largest.values() if row is not None]
    return rows if len(rows) == len(largest) else []


def plan_servers(name: str, kv_dtype: str) -> Iterator[Server]:
    """Servers of a plan as their engine starts by default, but for the cache's dtype."""
    for server in load_plan(name).servers:
        said = {"model", "chip", "tp", "kv_dtype"}
        usual = Server(**{flag: getattr(server, flag) for flag in said})
        if server.kv_dtype == kv_dtype and server.flags == usual.flags:
            yield server


def draw(found: Sequence[dict[str, Any]], fidelity: dict[str, Any], family: str) -> Any:
    """Squares by chip, and the simulator's error."""
    chips = [chip for chip in load_chips() if any(one["chip"] == chip for one in found)]
    pcts = [one["gain_pct"] for one in found]
    top = max(*pcts, 10.0)  # a gain of no account is pale
    base = alt.Chart(alt.Data(values=found)).encode(
        x=alt.X("tp:N", title="devices (tp)", axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("model:N", title=None, sort=alt.EncodingSortField("gain_pct", "max", "descending")),
    )
    colour = alt.Color(
        "gain_pct:Q",
        title="faster, %",
        scale=alt.Scale(domain=[0, top], range=["#eef2f5", _GREEN]),
        legend=None,  # the numbers stand in the squares
    )
    squares = base.mark_rect(stroke="white", strokeWidth=2, cornerRadius=4).encode(color=colour)
    words = base.mark_text(fontSize=12).encode(
        text=alt.Text("gain_pct:Q", format=".0f"),
        color=alt.condition(
            alt.datum.gain_pct > 0.6 * top, alt.value("white"), alt.value("#333333")
        ),
    )
    panels = (
        alt.layer(squares, words)
        .properties(width=4 * _SQUARE)
        .facet(
            column=alt.Column("chip:N", title=None, sort=chips, header=alt.Header(labelFontSize=15))
        )
    )
    models = len({one["model"] for one in found})
    is_today = all(one["is_today"] for one in found)
    heuristic = "the built-in heuristic" + ("" if is_today else " of the day they were made")
    title = alt.TitleParams(
        f"{family.capitalize()} with the tables that ship: % faster than {heuristic}",
        subtitle=[
            f"{models} models under tpu-inference's default flags: median {_text(pcts)}. Blank: no"
            " row yet.",
            f"Simulated ({found[0]['made_with']}), not measured. Configs less than "
            f"{found[0]['error_pct']:g} % apart count as equal, and the heuristic stays.",
        ],
        anchor="start",
        fontSize=17,
        subtitleFontSize=12,
        offset=12,
    )
    return (panels | _errors(fidelity, chips)).properties(title=title).configure_view(stroke=None)


def _text(pcts: Sequence[float]) -> str:
    return f"{statistics.median(pcts):.1f} %, most {max(pcts):.1f} %"


def _errors(fidelity: dict[str, Any], chips: Sequence[str]) -> Any:
    """Median and worst error of the simulator on each chip that has public device times."""
    values = [
        {
            "chip": chip,
            "median": 100 * one["median_abs_error"],
            "worst": 100 * one["worst_abs_error"],
            "text": f"median {100 * one['median_abs_error']:.1f} %, worst "
            f"{100 * one['worst_abs_error']:.0f} %, of {one['n']} times",
        }
        for chip in chips
        if (one := fidelity["by_chip"].get(chip))
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("chip:N", title=None, sort=None, axis=alt.Axis(labelFontSize=13)),
    )
    x = alt.X("median:Q", title="error, %", scale=alt.Scale(domainMin=0))
    bars = base.mark_bar(color=_GREY, size=14).encode(x=x)
    lines = base.mark_rule(color=_GREY).encode(x=x, x2="worst:Q")
    words = base.mark_text(align="left", dx=4, dy=-16, fontSize=11).encode(
        x=alt.value(0), text="text:N"
    )
    return alt.layer(bars, lines, words).properties(
        width=220, height=alt.Step(58), title="the simulator's error, by public device times"
    )


def main() -> None:
    """Draws the picture; the name's ending says as what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--tables", type=Path, default=shipped_folder())
    parser.add_argument("--plan", default="fleet")
    parser.add_argument("--family", default="decode")
    parser.add_argument("--kv-dtype", default="bfloat16")
    given = parser.parse_args()
    servers = plan_servers(given.plan, given.kv_dtype)
    found = gains(load_tables([given.tables]), servers, given.family)
    if not found:
        raise UsageError(f"no server of {given.plan} finds a row of its own in {given.tables}")
    fidelity = json.loads(FIDELITY.read_text(encoding="utf-8"))
    draw(found, fidelity, given.family).save(given.picture)
    print(f"{given.picture}: {len(found)} servers")


if __name__ == "__main__":
    main()
