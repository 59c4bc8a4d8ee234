"""Single values of a table: what is refused, and that the error names the field."""

import pytest

from rpa_tune.tables import values


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "what_us=nan is not a finite number"),
        (True, "what_us=True is not a finite number"),
        (2**31, "what_us=2147483648 is not a finite number"),
        (0, "what_us=0 must be above zero"),
        (-1, "what_us=-1 must be above zero"),
        (8, "what_us=8 must be at most 7"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(value, said):
    with pytest.raises(ValueError, match=said):
        values.check_range("what_us", value, most=7)


def test_what_can_be_passes():
    values.check_range("what_us", 7, most=7)
    values.check_range("share", 0, most=1)
    values.check_names("row", {"a": 1}, {"a"})


def test_an_object_has_its_fields_and_no_others():
    with pytest.raises(ValueError, match=r"row: missing \['b'\], unknown \['a'\]"):
        values.check_names("row", {"a": 1}, {"b"})
    with pytest.raises(ValueError, match="row is not an object"):
        values.mapping("row", [])
