"""The charts of a report as Vega-Lite, made with Altair: each answers one written question.

A chart is a function of the names of its columns alone. Its rows come from `rows.py` and are put
in by the page, under the name `rows`.
"""

import functools
from typing import Any

import altair as alt

from rpa_tune.report.gains import MEND_PCT
from rpa_tune.report.rows import BOTH, HEURISTIC, TRIED, WINNER
from rpa_tune.report.words import CAUSES, VERDICTS

Spec = dict[str, Any]
_WIDTH = 640
_DATA = alt.NamedData("rows")
# Readable on white and on black. What was left behind for its bound has a colour of its own: its
# grey was taken for that of what cannot exist.
_GREY = "#888888"
_STATE_COLORS = {
    "infeasible": "#9a9a9a66", "bounded": "#7a6fc066", "not asked": "#9a9a9a1c",
    "failed": "#d6545488",
}  # fmt: skip
_ROLE_COLORS = {WINNER: "#2a9d5c", BOTH: "#2a9d5c", HEURISTIC: "#e08a1e", TRIED: "#7a8aa0"}
_BOUND = "lower bound"
_LABEL = "datum.config + (datum.role == 'tried' ? '' : '  (' + datum.role + ')')"
_US = ",.1f"
# Fast is bright. Without the darkest violets, which are lost on a dark page.
_TIMES = alt.Scale(scheme=alt.SchemeParams(name="viridis", extent=[0.2, 1.0]), reverse=True)


def _spec(chart: Any) -> Spec:
    made: Spec = chart.to_dict()
    return made


def _tips(*fields: str | tuple[str, str] | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltips: a field, with its title and its format where they differ."""
    tips = []
    for each in fields:
        name, *rest = (each,) if isinstance(each, str) else each
        options: dict[str, Any] = dict(zip(("title", "format"), rest, strict=False))
        kind: Any = "quantitative" if "format" in options else "nominal"
        tips.append(alt.Tooltip(field=name, type=kind, **options))
    return tips


@functools.cache
def space(names: tuple[str, ...], varying: tuple[str, ...], x: str, y: str) -> Spec:
    """Time over two axes; the others as panels, the best panel first.

    Args:
      names: Config fields that are axes.
      varying: Those of more than one value: the others make no panels.
      x: Axis to begin with.
      y: The same.
    """
    x_axis, y_axis = (
        alt.param(name=name, value=value, bind=alt.binding_select(options=list(names), name=label))
        for name, value, label in (("x_axis", x, "across "), ("y_axis", y, "down "))
    )
    empty = alt.param(
        name="empty", value=False, bind=alt.binding_checkbox(name="panels without an answer ")
    )
    parts = [
        f"(x_axis == '{name}' || y_axis == '{name}' ? '' : ' {name}=' + datum['{name}'])"
        for name in varying
    ]
    panel = "trim(" + " + ".join(["''", *parts]) + ")"
    panels = alt.Facet(
        "panel:N", title=None, sort=alt.EncodingSortField("rank", op="min"),
        header=alt.Header(labelFontSize=10, labelLimit=320),
    )  # fmt: skip
    chart = (
        _cells(names)
        .properties(width=230, height=130)
        .facet(facet=panels, columns=3, data=_DATA)
        .add_params(x_axis, y_axis, empty)
        .transform_calculate(across="datum[x_axis]", down="datum[y_axis]", panel=panel)
        .transform_joinaggregate(
            panel_us="min(time_us)", panel_orders="max(order)", groupby=["panel"]
        )
        .transform_filter("empty || datum.panel_orders > 0")
        # Panels without a time come last: as one that is slower than any.
        .transform_calculate(rank="isValid(datum.panel_us) ? datum.panel_us : 1e18")
    )
    return _spec(chart)


def _cells(names: tuple[str, ...]) -> Any:
    """The cells of one panel: what has no time, what has, who won, and the order."""
    tips = _tips(*names, ("time_us", "time, us", _US), ("order", "asked as number"), "role",
                 "state", "why")  # fmt: skip
    base = alt.Chart().encode(
        x=alt.X("across:O", title=None),
        y=alt.Y("down:O", title=None, sort="descending"),
        tooltip=tips,
    )
    states = alt.Scale(domain=list(_STATE_COLORS), range=list(_STATE_COLORS.values()))
    numbers = base.transform_filter("datum.order != null")
    return alt.layer(
        # States are fills and times are colors: two channels have two scales, in every panel alike.
        base.transform_filter("datum.state != 'answered'")
        .mark_rect()
        .encode(fill=alt.Fill("state:N", scale=states, title="without a time")),
        base.transform_filter("datum.state == 'answered'")
        .mark_rect()
        .encode(color=alt.Color("time_us:Q", title="time, us", scale=_TIMES)),
        base.transform_filter("datum.role && datum.role != 'tried'")
        .mark_rect(filled=False, strokeWidth=4)
        .encode(stroke=alt.Stroke("role:N", title="outlined", scale=_stroke_scale())),
        numbers.mark_text(fontWeight="bold", fontSize=11, strokeWidth=3).encode(
            text="order:Q", color=alt.value("#ffffff"), stroke=alt.value("#ffffff")
        ),
        numbers.mark_text(fontWeight="bold", fontSize=11).encode(
            text="order:Q", color=alt.value("#000000")
        ),
    )


def _stroke_scale() -> alt.Scale:
    shown = {role: color for role, color in _ROLE_COLORS.items() if role != TRIED}
    return alt.Scale(domain=list(shown), range=list(shown.values()))


@functools.cache
def sensitivity() -> Spec:
    """The best time that each value of each axis allows."""
    base = alt.Chart().encode(
        x=alt.X("value:O", title=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("best_us:Q", title="best time, us", scale=alt.Scale(zero=False)),
        tooltip=_tips("axis", "value", ("best_us", "best time, us", _US), "configs"),
    )
    layers = alt.layer(base.mark_line(), base.mark_point(filled=True, size=70))
    chart = (
        layers.properties(width=150, height=130)
        .facet(facet=alt.Facet("axis:N", title=None, sort=None), columns=4, data=_DATA)
        .resolve_scale(x="independent")
    )
    return _spec(chart)


@functools.cache
def importance() -> Spec:
    """Bars of the axes' importances."""
    chart = (
        alt.Chart(_DATA)
        .mark_bar()
        .encode(
            x=alt.X(
                "importance:Q",
                title="importance (PED-ANOVA)",
                axis=alt.Axis(format=".0%", tickCount=8),
            ),
            y=alt.Y("axis:N", title=None, sort="-x"),
            tooltip=_tips("axis", ("importance", "importance", ".1%")),
        )
        .properties(width=_WIDTH)
    )
    return _spec(chart)


@functools.cache
def parallel() -> Spec:
    """A line for each config through its values on all axes, coloured by its time."""
    x = alt.X("axis:N", title=None, sort=None, axis=alt.Axis(labelAngle=0, orient="top"))
    y = alt.Y("place:Q", title=None, axis=None)
    tips = _tips("config", ("time_us", "time, us", _US), "role")
    lines = (
        alt.Chart()
        .mark_line(opacity=0.85)
        .encode(
            x=x,
            y=y,
            detail="config:N",
            color=alt.Color("time_us:Q", title="time, us", scale=_TIMES),
            strokeWidth=alt.condition(
                "indexof(datum.role, 'winner') == 0", alt.value(5), alt.value(1.5)
            ),
            tooltip=tips,
        )
    )
    values = alt.Chart().transform_aggregate(groupby=["axis", "place", "value"])
    # Twice: lines run through them, so that each stands on a halo of the page's colour.
    halos, labels = (
        values.mark_text(dx=-6, align="right", fontSize=10, style=style, strokeWidth=width).encode(
            x=x, y=y, text="value:N"
        )
        for style, width in (("halo", 4), ("text", 0))
    )
    points = alt.Chart().mark_point(filled=True, size=30).encode(
        x=x, y=y, color=alt.Color("time_us:Q"), tooltip=tips
    )  # fmt: skip
    chart = alt.layer(lines, points, halos, labels, data=_DATA)
    return _spec(chart.properties(width=_WIDTH, height=220))


@functools.cache
def causes() -> Spec:
    """Bars of the best configs, fastest on top: their time by cause."""
    scale = alt.Scale(domain=list(CAUSES), scheme="tableau10")
    y = alt.Y(
        "label:N",
        title=None,
        sort=alt.EncodingSortField("rank", op="min"),
        axis=alt.Axis(labelLimit=520),
    )
    base = alt.Chart(_DATA).transform_calculate(label=f"datum.rank + '  ' + {_LABEL}")
    bars = base.mark_bar().encode(
        x=alt.X("us:Q", title="time of one launch, us (mean over the workload)"),
        y=y,
        color=alt.Color(
            "cause:N",
            scale=scale,
            sort=list(CAUSES),
            title=None,
            legend=alt.Legend(orient="top", columns=8),
        ),
        order="at:Q",
        tooltip=_tips(
            "config",
            "role",
            "cause",
            ("us", "us", _US),
            ("cycles", "cycles", ","),
            ("time_us", "whole launch, us", _US),
        ),
    )
    totals = base.mark_text(align="left", dx=4, fontSize=10).encode(
        x="sum(us):Q", y=y, text=alt.Text("max(time_us):Q", format=_US)
    )
    return _spec((bars + totals).properties(width=540))


@functools.cache
def compared() -> Spec:
    """Two bars of time by cause, one above the other."""
    scale = alt.Scale(domain=list(CAUSES), scheme="tableau10")
    chart = (
        alt.Chart(_DATA)
        .mark_bar()
        .encode(
            x=alt.X("us:Q", title="time of one launch, us (mean over the workload)"),
            y=alt.Y("side:N", title=None, axis=alt.Axis(labelLimit=300)),
            color=alt.Color(
                "cause:N", scale=scale, title=None, legend=alt.Legend(orient="top", columns=8)
            ),
            order="at:Q",
            tooltip=_tips("side", "config", "cause", ("us", "us", _US)),
        )
        .properties(width=_WIDTH, height=alt.Step(28))
    )
    return _spec(chart)


@functools.cache
def batches() -> Spec:
    """Time of each batch with the best configs; filled where the row's rule picks the config."""
    tips = _tips("config", "role", ("batch", "batch"), ("us", "time, us", _US),
                 ("over_best", "over the best known", ".3f"), ("picked", "picked by the rule"),
                 ("weight", "share of launches", ".1%"), ("what", "batch"))  # fmt: skip
    base = alt.Chart(_DATA).transform_calculate(label=_LABEL).encode(
        x=alt.X("batch:O", title="batch of the workload", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("over_best:Q", title="time over the best known of the batch",
                scale=alt.Scale(zero=False)),
        color=alt.Color("label:N", title=None, legend=alt.Legend(labelLimit=560, orient="bottom",
                                                                  direction="vertical")),
        tooltip=tips,
    )  # fmt: skip
    points = base.mark_point(size=90, strokeWidth=2).encode(
        fillOpacity=alt.condition("datum.picked", alt.value(1.0), alt.value(0.0)),
        fill=alt.Fill("label:N", legend=None),
    )
    return _spec((base.mark_line(opacity=0.4) + points).properties(width=_WIDTH, height=240))


@functools.cache
def progress() -> Spec:
    """Each answer in the order they were asked for, the best so far, and the bounds."""
    x = alt.X("order:Q", title="number of the answer", axis=alt.Axis(tickMinStep=1, format="d"))
    title = "time, us"
    tips = _tips("config", "role", ("time_us", "time, us", _US), ("low_us", "90 % from, us", _US),
                 ("high_us", "90 % to, us", _US), ("bound_us", "its lower bound, us", _US),
                 "bound_by", ("mbu", "MBU", ".1%"), "problem")  # fmt: skip
    base = alt.Chart(_DATA).encode(x=x)
    best = base.mark_line(interpolate="step-after", color="#2a9d5c", strokeWidth=2).encode(
        y=alt.Y("best_us:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=8))
    )
    colors = _ROLE_COLORS | {_BOUND: "#b04ad0"}
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    points = base.mark_point(filled=True, size=70).encode(
        y="time_us:Q", color=alt.Color("role:N", scale=scale, title="config"), tooltip=tips
    )
    bounds = base.mark_tick(thickness=2).encode(
        y="bound_us:Q", color=alt.datum(_BOUND), tooltip=tips
    )
    least = (
        alt.Chart(_DATA)
        .mark_rule(strokeDash=[4, 4])
        .encode(
            y="min(least_us):Q",
            color=alt.datum(_BOUND),
            tooltip=alt.Tooltip("min(least_us):Q", title="least bound, us"),
        )
    )
    return _spec((best + bounds + points + least).properties(width=_WIDTH, height=240))


@functools.cache
def coverage() -> Spec:
    """What is tuned: bars of studies by chip."""
    scale = alt.Scale(
        domain=list(VERDICTS),
        range=["#2a9d5c", "#5b8db8", "#e0b21e", "#d65454", "#9a9a9a66"],
    )
    chart = (
        alt.Chart(_DATA)
        .transform_calculate(one="1")
        .mark_bar()
        .encode(
            x=alt.X("one:Q", stack="normalize", axis=None),
            y=alt.Y("what:N", title=None, sort=None, axis=alt.Axis(labelLimit=460)),
            color=alt.Color("verdict:N", scale=scale, title="row"),
            order="at:Q",
            detail="study:N",
            tooltip=_tips(
                "study", "verdict", ("speedup", "over the heuristic", ".2f"), "evaluated"
            ),
        )
        .properties(width=110, height=alt.Step(16))
        .facet(column=alt.Column("chip:N", title=None), spacing=6)
    )
    return _spec(chart)


@functools.cache
def gains() -> Spec:
    """Gains over the heuristic by chip, family and model, with the evaluator's error."""
    title = "gain of the best found config over the heuristic, %"
    y = alt.Y("model:N", title=None, sort=None)
    tips = _tips("study", "verdict", ("gain_pct", "gain, %", ".1f"),
                 ("low_pct", "from, %", ".1f"), ("high_pct", "to, %", ".1f"))  # fmt: skip
    base = alt.Chart(_DATA)
    chart = alt.layer(
        base.mark_rule(strokeDash=[4, 4], color=_GREY).encode(x=alt.datum(MEND_PCT)),
        base.mark_rule(strokeWidth=5, opacity=0.15, color=_GREY).encode(
            x=alt.X("low_pct:Q", title=title), x2="high_pct:Q", y=y, tooltip=tips
        ),
        base.mark_point(filled=True, size=50, opacity=0.9).encode(
            x=alt.X("gain_pct:Q", title=title), y=y, color="family:N", tooltip=tips
        ),
    ).properties(width=_WIDTH)
    return _spec(chart.facet(row=alt.Row("chip:N", title=None)).resolve_scale(y="independent"))


@functools.cache
def measured() -> Spec:
    """Measured over simulated times, with the interval that was predicted."""
    x = alt.X("simulated_us:Q", title="simulated, us", scale=alt.Scale(type="log"))
    y = alt.Y("measured_us:Q", title="measured, us", scale=alt.Scale(type="log"))
    tips = _tips("study", "config", ("simulated_us", "simulated, us", _US),
                 ("low_us", "90 % from, us", _US), ("high_us", "90 % to, us", _US),
                 ("measured_us", "measured, us", _US),
                 ("ratio", "measured over simulated", ".3f"))  # fmt: skip
    base = alt.Chart(_DATA)
    inside = alt.Scale(domain=[True, False], range=["#2a9d5c", "#d65454"])
    chart = alt.layer(
        base.mark_line(color=_GREY, strokeDash=[4, 4]).encode(x=x, y=alt.Y("simulated_us:Q")),
        base.mark_rule(strokeWidth=6, opacity=0.35, color=_GREY).encode(
            x=x, y=alt.Y("low_us:Q"), y2="high_us:Q", tooltip=tips
        ),
        base.mark_point(filled=True, size=60).encode(
            x=x,
            y=y,
            tooltip=tips,
            color=alt.Color("inside:N", title="within the 90 % interval", scale=inside),
        ),
    ).properties(width=_WIDTH, height=320)
    return _spec(chart)  # fmt: skip
