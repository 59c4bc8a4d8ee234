"""The page in a real browser: it opens without errors, its marks are those of known data."""

import shutil

import pytest

pytest.importorskip("altair", reason="the extra `report` is not installed")
pytest.importorskip("playwright", reason="Playwright is not installed")

from fake_sweep import make_study
from playwright import sync_api
from pure.report.stores import write_store

from rpa_tune.report import html
from rpa_tune.report.document import load_all, make_document

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"
)
DRAWN_MS = 60_000
STUDY = make_study()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    first = write_store(folder / "a.jsonl", [STUDY], measured=(1.02, 1.3))
    second = write_store(folder / "b.jsonl", [STUDY], scale=1.25)
    return make_document(load_all([first, second]), title="a <b> & c")


@pytest.fixture(scope="module")
def page(browser, document, tmp_path_factory):
    """The page of two stores, open and drawn, offline; errors are in `page.errors`."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.render(document))
    context = browser.new_context(offline=True, color_scheme="light")
    opened = context.new_page()
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda m: opened.errors.append(m.text) if m.type == "error" else None)
    opened.goto(path.as_uri())
    opened.wait_for_selector("body[data-drawn]", timeout=DRAWN_MS)
    return opened


def rows_of(document, chart):
    """Of the study that the page begins with."""
    return html.unpack(document["studies"][document["first"]]["rows"][chart])


def test_it_opens_without_errors_and_every_chart_is_drawn_or_says_why_not(page, document):
    assert page.get_attribute("body", "data-drawn") == "yes"
    assert page.errors == []
    assert page.text_content("h1") == "a <b> & c"
    ids = [*document["study_charts"], *document["run_charts"], "compared"]
    for chart in ids:
        question = document["charts"][chart]["question"]
        assert page.get_by_role("heading", name=question).count() == 1
        assert page.locator(f"#chart-{chart} svg").count() == 1
    assert page.text_content("#why") == document["studies"][document["first"]]["why"]


def test_marks_are_those_of_the_data(page, document):
    answers = rows_of(document, "progress")
    points = page.locator("#chart-progress .mark-symbol.role-mark path")
    assert points.count() == len(answers)
    bars = page.locator("#chart-causes .mark-rect.role-mark path")
    assert bars.count() == len(rows_of(document, "causes"))
    # Numbers of the answers, in the cells of their configs; each has an outline of its own.
    numbers = page.locator("#chart-space .mark-text.role-mark text").all_text_contents()
    assert sorted(map(int, numbers)) == sorted([*range(1, len(answers) + 1)] * 2)


def test_cells_say_their_config_and_what_forbids_them(page, document):
    labels = page.locator("#chart-space .mark-rect.role-mark path").evaluate_all(
        "marks => marks.map(mark => mark.getAttribute('aria-label'))"
    )
    cells = [dict(part.split(": ", 1) for part in label.split("; ")) for label in labels]
    answered = [row for row in rows_of(document, "space") if row["state"] == "answered"]
    assert len(answered) > 0
    for row in answered:
        fields = {name: str(row[name]) for name in STUDY.overrides}
        (shown, *_) = [c for c in cells if fields.items() <= c.items() and "time, us" in c]
        assert float(shown["time, us"]) == pytest.approx(row["time_us"], abs=0.051)
        assert shown["asked as number"] == str(row["order"])
    forbidden = {row["why"] for row in rows_of(document, "space") if row["state"] == "infeasible"}
    assert any(cell["why"] in forbidden for cell in cells)


def test_hovering_shows_the_config(page, document):
    point = page.locator("#chart-progress .mark-symbol.role-mark path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for(timeout=10_000)
    shown = tip.text_content()
    assert any(row["config"] in shown for row in rows_of(document, "progress"))
    page.mouse.move(0, 0)


def test_the_menus_choose_the_axes(page, document):
    """The same answers, in cells of other axes."""
    before = page.locator("#chart-space svg").evaluate("svg => svg.outerHTML")
    page.locator("#chart-space .vega-bindings select").first.select_option("num_buffers")
    page.wait_for_function(
        "before => document.querySelector('#chart-space svg').outerHTML !== before", arg=before
    )
    numbers = page.locator("#chart-space .mark-text.role-mark text").count()
    assert numbers == 2 * len(rows_of(document, "progress"))


def test_a_click_on_a_study_shows_it_and_heads_sort(page, document):
    rows = page.locator("#run table tbody tr")
    first = rows.first.text_content()
    head = page.locator("#run th", has_text="time, us").first
    head.click()
    head.click()
    assert rows.first.text_content() != first or rows.count() == 1
    rows.filter(has_text="b.jsonl").click()
    page.wait_for_function("why => document.querySelector('#why')?.textContent === why",
                           arg=document["studies"][1]["why"])  # fmt: skip
    pair = document["compare"][0]
    assert page.text_content("#compare .why") == pair["summary"]


def test_it_is_readable_in_the_dark(page):
    def ink_and_paper():
        return page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).background,"
            " getComputedStyle(document.querySelector('svg .role-axis-label text')).fill]"
        )

    light = ink_and_paper()
    page.evaluate("delete document.body.dataset.drawn")
    page.click("#theme")
    page.wait_for_selector("body[data-drawn]", timeout=DRAWN_MS)
    dark = ink_and_paper()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert page.errors == []


def test_a_run_of_thousands_fits_the_window(browser, document, tmp_path):
    """Names that many studies share are cut, and rows beyond the first are there when asked for."""
    row = html.unpack(document["table"]["rows"])[0]
    names = [f"v6e/{' and '.join(['a model/8192 tokens/decode'] * 9)} {i}" for i in range(1000)]
    table = html.pack([{**row, "study": name} for name in names])
    study = document["studies"][0]
    large = {
        **document, "compare": [], "run_charts": [], "study_charts": [],
        "table": {**document["table"], "rows": table},
        "studies": [{**study, "label": name} for name in names],
    }  # fmt: skip
    path = tmp_path / "report.html"
    path.write_text(html.render(large))
    opened = browser.new_context(offline=True, viewport={"width": 1000, "height": 700}).new_page()
    opened.goto(path.as_uri())
    opened.wait_for_selector("body[data-drawn=yes]", timeout=DRAWN_MS)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1000
    rows = opened.locator("#run table tbody tr")
    few = rows.count()
    assert few < len(names)
    assert opened.locator("#run td").first.get_attribute("title") == names[0]
    opened.fill("#run input", names[-1])  # looks at whole names, and at all
    assert rows.count() == 1
    opened.fill("#run input", "")
    opened.get_by_role("button", name=f"{few} of 1,000 rows: show all").click()
    assert rows.count() == len(names)
