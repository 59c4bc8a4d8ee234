"""What is tuned, in a chart that fits a screen however many studies a run has."""

from types import SimpleNamespace

from rpa_tune.report.coverage import MAX_LINES, coverage_rows


def rows_of(names):
    views = [SimpleNamespace(name=name, candidate=None, answers=()) for name in names]
    table = [{"study": name, "verdict": "not begun", "speed-up": None} for name in names]
    table[0]["verdict"] = "tuned"
    return coverage_rows(views, table)


def test_few_studies_have_a_line_each():
    names = [f"{chip}/llama3-8b/tp {i}/decode" for i in range(MAX_LINES) for chip in ("v6e", "v7x")]
    rows = rows_of(names)
    assert len(rows) == 2 * MAX_LINES
    assert {row["chip"] for row in rows} == {"v6e", "v7x"}
    assert {row["what"] for row in rows} == {f"llama3-8b/tp {i}/decode" for i in range(MAX_LINES)}


def test_many_share_one_of_their_model_and_family():
    families = ("decode", "mixed")
    names = [
        f"v6e/m{i % 3}/tp {i}/{family} and {i} more"
        for i in range(MAX_LINES)
        for family in families
    ]
    rows = rows_of(names)
    assert [row["study"] for row in rows] != names  # lines by name
    assert {row["study"] for row in rows} == set(names)  # a mark of its own each
    lines = {f"m{i} {family}" for i in range(3) for family in families}
    assert {row["what"] for row in rows} == lines
    assert [row["verdict"] for row in rows].count("tuned") == 1


def test_what_is_grouped_on_one_chip_only_has_the_same_lines_on_both():
    small, large = "small/tp 1/decode", "large/tp 1/decode"
    names = [f"v6e/{small}", f"v6e/{large}", f"v7x/{small} and v7x/{large}"]
    rows = rows_of(names)
    assert {(row["chip"], row["what"]) for row in rows} == {
        (chip, what) for chip in ("v6e", "v7x") for what in (small, large)
    }
    assert {row["study"] for row in rows if row["chip"] == "v7x"} == {names[2]}
