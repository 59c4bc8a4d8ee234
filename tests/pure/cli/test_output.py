"""What all commands write alike."""

import json

import pytest

from rpa_tune.cli.output import counted, print_json


def test_a_document_is_sorted_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"b": [1, None], "a": {"é": 0.5}}
    print_json(data)
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (data, "")
    assert out.index('"a"') < out.index('"b"')


def test_what_json_cannot_say_is_an_error_and_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"time_us": float("nan")})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12345, "12,345 rows")]
)
def test_numbers_and_nouns_agree(number: int, text: str) -> None:
    assert counted(number, "row") == text
