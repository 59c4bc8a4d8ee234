"""A report: what its charts show follows from what the store holds, mark by mark."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("altair", reason="the extra `report` is not installed")
pytest.importorskip("vl_convert", reason="the extra `report` is not installed")

import vl_convert
from fake_sweep import make_study
from pure.report.stores import many_studies, write_store, write_unsearched_store

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Fidelity, Status
from rpa_tune.report import charts, html, rows, study
from rpa_tune.report.document import RUN_CHARTS, STUDY_CHARTS, make_document
from rpa_tune.report.importance import importances
from rpa_tune.report.story import causes_text, why
from rpa_tune.report.study import load_studies, roughly
from rpa_tune.report.words import CAUSES, STATES
from rpa_tune.store.journal import Journal

MOST_BYTES = 5e6


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s.jsonl"
    (found,) = load_studies(write_store(path, [make_study()], measured=(1.02, 1.3)))
    return found


def changed(view, answer, **changes):
    """The study with one answer changed."""
    answers = tuple(replace(a, **changes) if a is answer else a for a in view.answers)
    return replace(view, answers=answers)


def document(view):
    return make_document([view], title="t")


def chart_of(made, chart_id):
    """(spec, rows) as the page puts them together."""
    one = made["studies"][0]
    packed = made["run"] if chart_id in made["run_charts"] else one["rows"]
    number = one["specs"].get(chart_id)
    spec = made["charts"][chart_id]["spec"] if number is None else made["specs"][number]
    return spec, html.unpack(packed[chart_id])


def marks(made, chart_id):
    """Every drawn item, as text: what kind, where, how large, in which colour."""
    spec, found = chart_of(made, chart_id)
    graph = vl_convert.vegalite_to_scenegraph(json.dumps({**spec, "datasets": {"rows": found}}))
    items = []

    def walk(node):
        if isinstance(node, list):
            for each in node:
                walk(each)
        elif isinstance(node, dict):
            if node.get("role") == "mark":
                for item in node["items"]:
                    kept = {k: v for k, v in item.items() if k not in ("items", "description")}
                    items.append((node["marktype"], json.dumps(kept, sort_keys=True)))
            walk(node.get("items", []))

    walk(graph["scenegraph"])
    return items


def simulated(view, number):
    return list(view.simulated.values())[number]


def slower(view):
    answer = simulated(view, 3)
    return changed(view, answer, time_us=answer.time_us * 1.5)


def another_fastest(view):
    slowest = max(view.simulated.values(), key=lambda answer: answer.time_us)
    return changed(view, slowest, time_us=1.0)


def other_cycles(view):
    answer = view.winners[0]
    answer = view.simulated[answer.candidate.config]
    cycles = {**answer.metrics["cycles_by_owner"], "issue": 10**6}
    return changed(view, answer, metrics={**answer.metrics, "cycles_by_owner": cycles})


def slower_batch(view):
    answer = view.measured[view.winners[0].candidate.config]
    return changed(view, answer, batch_us=(answer.batch_us[0] * 1.5, answer.batch_us[1]))


def measured_slower(view):
    answer = next(iter(view.measured.values()))
    return changed(view, answer, time_us=answer.time_us * 1.5)


def only_simulated(view):
    return replace(view, answers=tuple(a for a in view.answers if a.fidelity is Fidelity.SIMULATED))


def other_verdict(view):
    return replace(view, note=replace(view.note, verdict=""))


def other_bound(view):
    return replace(view, note=replace(view.note, bounds_us={**view.note.bounds_us, "least": 1.0}))


@pytest.mark.parametrize(
    ("chart_id", "start", "change"),
    [
        ("space", only_simulated, slower),
        ("causes", only_simulated, other_cycles),
        ("importance", only_simulated, another_fastest),
        ("sensitivity", only_simulated, another_fastest),
        ("parallel", only_simulated, slower),
        ("batches", lambda view: view, slower_batch),
        ("progress", only_simulated, slower),
        ("progress", only_simulated, other_bound),
        ("coverage", only_simulated, other_verdict),
        ("gains", only_simulated, another_fastest),
        ("measured", lambda view: view, measured_slower),
    ],
)
def test_a_changed_datum_moves_a_mark(view, chart_id, start, change):
    begin = start(view)
    before, after = (marks(document(v), chart_id) for v in (begin, change(begin)))
    assert len(before) > 0
    assert before != after


def test_all_kinds_of_charts_are_tested_and_ask_something(view):
    made = document(view)
    ids = {chart.id for chart in (*STUDY_CHARTS, *RUN_CHARTS)}
    tested = test_a_changed_datum_moves_a_mark.pytestmark[0].args[1]
    assert {case[0] for case in tested} == ids
    for each in (*made["charts"].values(), made["table"]):
        assert each["question"].endswith("?")
        assert each["note"]


def test_cells_say_what_cannot_exist_and_why(view):
    made_study = make_study()
    cells = {c: (state, why) for c, state, why in view.cells()}
    assert len(cells) == view.num_points
    for config in made_study.space().configs:
        assert cells[config][0] != "infeasible"
    family, target = made_study.family, made_study.chip.target
    infeasible = {c: text for c, (state, text) in cells.items() if state == "infeasible"}
    assert infeasible
    for config, text in infeasible.items():
        assert text == roughly(str(family.check(made_study.problem, config, target)))
    assert {state for state, _ in cells.values()} <= set(STATES)
    rows_of = rows.space_rows(view)
    assert sum(row["state"] == "answered" for row in rows_of) == len(view.simulated)
    assert sorted(r["order"] for r in rows_of if r["order"]) == list(
        range(1, len(view.simulated) + 1)
    )


def test_a_failed_config_is_a_cell_with_its_reason_and_no_time(view):
    answer = simulated(only_simulated(view), 2)
    failed = changed(only_simulated(view), answer, status=Status.OUT_OF_MEMORY, detail="VMEM full",
                     time_us=None, batch_us=())  # fmt: skip
    (row,) = [row for row in rows.space_rows(failed) if row["state"] == "failed"]
    assert (row["why"], row["time_us"], row["order"]) == ("out_of_memory: VMEM full", None, 3)
    assert rows.answer_rows(failed)[2]["problem"] == "out_of_memory: VMEM full"


def test_a_grid_that_is_too_large_shows_what_was_asked(view, monkeypatch):
    monkeypatch.setattr(study, "MAX_CELLS", 10)
    monkeypatch.setattr(rows, "MAX_CELLS", 10)
    assert list(view.cells()) == []
    assert len(rows.space_rows(view)) == len(view.simulated)


def test_the_winner_is_the_row_s_and_its_gain_is_that_of_the_times(view):
    begin = only_simulated(view)
    (row,) = html.unpack(document(begin)["table"]["rows"])
    fields = [config_to_dict(answer.candidate.config) for answer in begin.answers]
    known = begin.answers[fields.index(begin.plan.heuristic)]
    (config,) = begin.note.row["configs"]
    chosen = [begin.answers[fields.index(config)]]
    assert row["verdict"] == begin.note.verdict == "tuned"
    assert row["heuristic, us"] == pytest.approx(known.time_us, abs=1e-3)
    assert row["time, us"] == pytest.approx(chosen[0].time_us, abs=1e-3)
    assert row["speed-up"] == pytest.approx(known.time_us / chosen[0].time_us, abs=1e-3)
    text = why(begin)
    assert f"{chosen[0].time_us:,.1f} us instead of the heuristic's {known.time_us:,.1f}" in text
    for name, value in config_to_dict(chosen[0].candidate.config).items():
        assert (f"{name}={value} instead of" in text) == (begin.plan.heuristic[name] != value)


def test_causes_say_what_grew_and_what_fell(view):
    answer = simulated(view, 0)
    cycles = dict.fromkeys(CAUSES, 0) | {"issue": 60, "sync": 40}
    more = dict.fromkeys(CAUSES, 0) | {"issue": 60, "sync": 20}
    before = replace(answer, time_us=100.0, metrics={"cycles_by_owner": cycles})
    after = replace(answer, time_us=80.0, metrics={"cycles_by_owner": more})
    assert causes_text(before, after) == f"20.0 us less of {CAUSES['sync']} (sync)"
    assert causes_text(after, before) == f"20.0 us more of {CAUSES['sync']} (sync)"


def test_the_axis_that_decides_is_the_most_important():
    axes = {"a": (1, 2, 4, 8), "b": (1, 2, 4, 8), "c": (3,)}
    answers = [({"a": a, "b": b, "c": 3}, 100.0 * a + b) for a in axes["a"] for b in axes["b"]]
    found = importances(axes, answers)
    assert set(found) == {"a", "b"}
    assert found["a"] > found["b"]
    assert sum(found.values()) == pytest.approx(1)
    assert importances(axes, answers[:3]) == {}


def test_packed_rows_come_back_as_they_were():
    given = [{"a": 1, "b": None, "c": True, "d": "x"}, {"a": 1.5, "b": 2, "c": 1, "d": "x"}] * 5
    back = html.unpack(json.loads(json.dumps(html.pack(given))))
    assert back == given
    assert [type(row["c"]) for row in back] == [type(row["c"]) for row in given]
    assert html.unpack(html.pack([])) == []


def marks_of(spec):
    """All unit charts in a chart."""
    if "mark" in spec:
        yield spec
    for part in [*spec.get("layer", ()), *([spec["spec"]] if "spec" in spec else ())]:
        yield from marks_of(part)


def test_every_rule_has_a_colour(view):
    """Vega draws rules in black by default, which nobody sees on a dark page."""
    charts = make_document([view], title="t")["charts"].values()
    rules = [
        unit
        for chart in charts
        for unit in marks_of(chart["spec"])
        if isinstance(unit["mark"], dict) and unit["mark"]["type"] == "rule"
    ]
    assert len(rules) >= 4
    assert all("color" in unit["mark"] or "color" in unit["encoding"] for unit in rules)


def test_menus_choose_among_the_axes(view):
    drawn = document(view)
    spec = drawn["specs"][drawn["studies"][0]["specs"]["space"]]
    names = [axis.name for axis in view.axes]
    found = {param["name"]: param for param in spec["params"]}
    assert found["x_axis"]["bind"]["options"] == found["y_axis"]["bind"]["options"] == names
    made = charts.space(("a", "b", "c"), ("a", "b"), "a", "b")
    assert "' b='" in json.dumps(made)
    assert "' c='" not in json.dumps(made)  # one value makes no panels


def test_stores_of_older_versions_and_running_ones_have_a_page(tmp_path: Path):
    path = write_store(tmp_path / "s.jsonl", [make_study()])
    lines = path.read_bytes().splitlines(keepends=True)
    for line in list(lines):
        if line.startswith((b'{"study_plan"', b'{"study_note"')):
            data = json.loads(line)
            for key in ("axes", "workload", "objective", "row", "bounds_us"):
                data[next(iter(data))].pop(key, None)
            lines[lines.index(line)] = json.dumps(data, separators=(",", ":")).encode() + b"\n"
    old = tmp_path / "old.jsonl"
    old.write_bytes(b"".join(lines))
    (view,) = load_studies(old)
    assert view.winners[0].candidate.config == load_studies(path)[0].winners[0].candidate.config
    made = document(view)
    assert any("axes are the family's of today" in fact for fact in made["studies"][0]["facts"])
    running = tmp_path / "running.jsonl"
    running.write_bytes(b"".join(line for line in lines if not line.startswith(b'{"study_note"')))
    (view,) = load_studies(running)
    assert view.verdict == "running"
    assert document(view)["studies"][0]["rows"]["progress"]["length"] == len(view.simulated)
    planned = tmp_path / "planned.jsonl"
    with Journal(planned) as journal:
        journal.append_note(make_study().note())
    assert [v.verdict for v in load_studies(planned)] == ["not begun"]
    assert html.render(document(load_studies(planned)[0]))


def size_of(tmp_path, number, **options):
    path = write_store(tmp_path / f"{number}.jsonl", many_studies(number, **options))
    return len(html.render(make_document(load_studies(path), title="t")))


def test_six_hundred_studies_are_under_five_megabytes(tmp_path: Path):
    """By what six studies more add: those of a large run are no larger each."""
    few, more = size_of(tmp_path, 2), size_of(tmp_path, 8)
    assert few + 100 * (more - few) < MOST_BYTES


@pytest.mark.slow
def test_six_hundred_studies_with_whole_spaces_are_under_five_megabytes(tmp_path: Path):
    """The axes of the family itself, 20 answers on 16 batches, and a reason for all other cells."""
    studies = [replace(study, overrides={}) for study in many_studies(600)]
    path = write_unsearched_store(tmp_path / "s.jsonl", studies, num_answers=20)
    page = html.render(make_document(load_studies(path), title="t"))
    assert html.read_document(page)["run"]["coverage"]["length"] == 600
    assert len(page) < MOST_BYTES
