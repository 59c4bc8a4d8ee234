"""What counts as covered, by the source of a look-up and its expected loss."""

from types import SimpleNamespace

import pytest

from rpa_tune.analysis.coverage import MOST_LOSS_PCT, coverage
from rpa_tune.dispatch.select import Source


def audited(model, *entries, chip="v6e"):
    listed = [SimpleNamespace(coverage=s, expected_loss_pct=loss) for s, loss in entries]
    server = SimpleNamespace(model=model, chip=chip, engine="tpu-inference")
    return SimpleNamespace(server=server, entries=listed)


@pytest.mark.parametrize(("source", "loss_pct", "where"), [
    (Source.EXACT, 0.0, "exact"),
    (Source.EXACT, None, "exact"),  # of other kernels: tables lint says so
    (Source.NEAREST, MOST_LOSS_PCT - 0.01, "near"),
    (Source.NEAREST, MOST_LOSS_PCT, "far"),
    (Source.NEAREST, None, "far"),
    (Source.HEURISTIC, 0.0, "heuristic"),
    (Source.INFEASIBLE, None, "infeasible"),
])  # fmt: skip
def test_a_look_up_counts_once(source, loss_pct, where):
    (found,) = coverage([audited("a", (source, loss_pct))])
    counts = {
        name: getattr(found, name) for name in ("exact", "near", "far", "heuristic", "infeasible")
    }
    assert counts == dict.fromkeys(counts, 0) | {where: 1}
    assert found.covered == (("a",) if where in ("exact", "near") else ())


def test_a_model_is_covered_if_all_its_servers_are_and_chips_are_apart():
    exact, miss = (Source.EXACT, 0.0), (Source.HEURISTIC, None)
    found = coverage([audited("a", exact), audited("b", exact), audited("a", exact, miss),
                      audited("a", exact, chip="v7x")])  # fmt: skip
    assert [(one.chip, one.models, one.covered, one.num_servers) for one in found] == [
        ("v6e", ("a", "b"), ("b",), 3), ("v7x", ("a",), ("a",), 1)
    ]  # fmt: skip
    assert found[0].to_dict()["models_not_covered"] == ["a"]
