"""How commands say which kinds of layers a model has."""

import json
from dataclasses import replace

import pytest

from rpa_tune.cli.layers_text import layers_to_dict, print_layers
from rpa_tune.models.catalog import load_model

GEMMA = load_model("gemma3-12b")


def test_the_line_is_data_or_progress_and_notes_are_never_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    noted = replace(GEMMA, notes=("taken for granted",))
    line = f"layers of gemma3-12b: {GEMMA.layers_text}\n"
    print_layers(noted)
    assert capsys.readouterr() == (line, "note: taken for granted\n")
    print_layers(noted, err=True)
    assert capsys.readouterr() == ("", f"{line}note: taken for granted\n")


def test_json_has_each_kind_with_its_name_and_why_it_is_not_served() -> None:
    kinds = (*GEMMA.kinds, replace(GEMMA.kinds[0], refusal="no kernel", sm_scale=1.0))
    data = layers_to_dict(replace(GEMMA, kinds=kinds, other_layers={"mamba": 3}))
    assert json.loads(json.dumps(data)) == data
    assert [kind["unserved"] for kind in data["kinds"]] == ["", "", "no kernel"]
    assert len({kind["name"] for kind in data["kinds"]}) == 3
    assert data["kinds"][0]["num_layers"] == GEMMA.kinds[0].num_layers
    assert (data["other_layers"], data["notes"]) == ({"mamba": 3}, [])
