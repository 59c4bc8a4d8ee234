"""Two stores side by side: pairs, ratios, winners that flipped, causes of both."""

from dataclasses import replace

import pytest

pytest.importorskip("altair", reason="the extra `report` is not installed")

from fake_sweep import PROBLEM, make_study
from pure.report.stores import write_store

from rpa_tune.report import html
from rpa_tune.report.compare import compare, pair_up
from rpa_tune.report.document import load_all, make_document
from rpa_tune.report.study import load_studies
from rpa_tune.store.journal import Journal

OTHER = make_study(name="v6e/other/decode", problem=replace(PROBLEM, sliding_window=512))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return (
        write_store(folder / "a.jsonl", [make_study(), OTHER]),
        write_store(folder / "b.jsonl", [make_study()], scale=1.25),
    )


@pytest.fixture(scope="module")
def sides(stores):
    return tuple(load_studies(path, path.stem) for path in stores)


def of(view, config, **changes):
    """The study with the answer to one config changed."""
    answers = [replace(a, **changes) if a.candidate.config == config else a for a in view.answers]
    return replace(view, answers=tuple(answers))


def test_the_ratio_is_that_of_the_winners_times(sides):
    both, alone = pair_up(*sides)
    assert both.ratio == pytest.approx(1.25, rel=1e-3)
    assert not both.is_flipped
    assert (alone.before.name, alone.after, alone.ratio) == (OTHER.name, None, None)
    back = pair_up(sides[1], sides[0])[0]
    assert back.ratio == pytest.approx(1 / both.ratio)


def test_another_winner_is_a_flip_and_says_what_changed(sides):
    before, after = sides[0][0], sides[1][0]
    best = after.winners[0].candidate.config
    flipped = replace(of(after, best, time_us=900.0, batch_us=(900.0, 900.0)), note=None)
    made = compare([before], [flipped])
    (row,) = html.unpack(made["rows"])
    assert row["winner"] == "another"
    assert " instead of " in row["what changed"]
    assert "Its winner is another one" in row["_why"]
    assert "1 have another winner" in made["summary"]
    (same,) = html.unpack(compare([before], [after])["rows"])
    assert (same["winner"], same["what changed"]) == ("the same", "")


def test_causes_of_both_sides_add_up_to_their_times(sides):
    made = compare(*sides)
    causes = html.unpack(made["causes"])
    for number, name in ((0, "first: a"), (1, "second: b")):
        spent = sum(row["us"] for row in causes if row["side"] == name and row["pair"] == 0)
        view = sides[number][0]
        winner = view.simulated[view.winners[0].candidate.config]
        assert spent == pytest.approx(winner.time_us, abs=0.01)


def test_what_differs_beside_the_time_is_said(sides):
    before, after = sides[0][0], sides[1][0]
    other = replace(
        after,
        answers=tuple(
            replace(a, provenance={**a.provenance, "libtpu": "9.9"}) for a in after.answers
        ),
    )
    (row,) = html.unpack(compare([before], [other])["rows"])
    assert f"libtpu {before.answers[0].provenance['libtpu']} became 9.9" in row["_why"]


def test_studies_of_two_chips_are_pairs_when_the_stores_have_no_chip_in_common(tmp_path):
    one = write_store(tmp_path / "one.jsonl", [make_study()])
    two = write_store(tmp_path / "two.jsonl", [make_study(chip="v5e", name="v5e/fake/decode")])
    (pair,) = pair_up(load_studies(one), load_studies(two))
    assert pair.study == "v6e/fake/decode / v5e/fake/decode"
    both = write_store(
        tmp_path / "both.jsonl",
        [make_study(), make_study(chip="v5e", name="v5e/fake/decode")],
    )
    pairs = pair_up(load_studies(both), load_studies(two))
    assert [(bool(p.before), bool(p.after)) for p in pairs] == [(True, True), (True, False)]
    assert pairs[0].before.candidate.chip.name == "v5e"


def test_a_study_that_has_not_begun_is_the_pair_of_the_same_one(sides, tmp_path):
    path = tmp_path / "planned.jsonl"
    with Journal(path) as journal:
        journal.append_note(make_study().note())
    planned = load_studies(path)
    (pair,) = pair_up(planned, sides[1])
    assert (pair.before, pair.after, pair.ratio) == (planned[0], sides[1][0], None)
    assert "has a time in" in compare(planned, sides[1])["summary"]


def test_the_first_store_is_compared_with_each_other(stores, tmp_path):
    made = make_document(load_all(stores), title="t")
    assert [each["title"] for each in made["compare"]] == ["a.jsonl and b.jsonl side by side"]
    assert [s["label"] for s in made["studies"]] == [
        "a.jsonl: v6e/fake/decode", f"a.jsonl: {OTHER.name}", "b.jsonl: v6e/fake/decode",
    ]  # fmt: skip
    assert make_document(load_all(stores[:1]), title="t")["compare"] == []
    (tmp_path / "x").mkdir()
    again = tmp_path / "x" / "a.jsonl"
    again.write_bytes(stores[1].read_bytes())
    made = make_document(load_all([stores[0], again, stores[1]]), title="t")
    assert len(made["compare"]) == 2
    assert "x/a.jsonl" in made["compare"][0]["title"]
