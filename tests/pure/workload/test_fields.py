"""From a mapping to a record: which values a field takes, and how a wrong one is said."""

import enum
import math
from dataclasses import dataclass, field

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.workload.fields import check_keys, read_record


class Shade(enum.StrEnum):
    LIGHT_GREY = "light_grey"
    DARK = "dark"


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 1.0
    count: int | None = None
    flag: bool = False
    shade: Shade = Shade.DARK
    inner: Inner = field(default_factory=lambda: Inner(1))

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must be at least 0")


def read(**data) -> Outer:
    return read_record(Outer, {"name": "n", **data}, "top")


def test_values_of_every_kind() -> None:
    assert read() == Outer("n")
    right = Outer("n", rate=2.0, count=3, flag=True, shade=Shade.LIGHT_GREY, inner=Inner(7))
    assert read(rate=2, count=3, flag=True, shade="Light-Grey", inner={"size": 7}) == right
    assert type(read(rate=2).rate) is float
    assert read(count=None).count is None


@pytest.mark.parametrize(
    ("data", "message", "where"),
    [
        ({"rate": "2"}, "a float is needed, got '2'", "top.rate"),
        ({"rate": math.nan}, "a finite number is needed, got nan", "top.rate"),
        ({"rate": 10**400}, "a finite number is needed, got inf", "top.rate"),
        ({"rate": True}, "a float is needed, got True", "top.rate"),
        ({"rate": -1}, "rate=-1.0 must be at least 0", "top"),
        ({"count": 2.0}, "a int is needed, got 2.0", "top.count"),
        ({"count": True}, "a int is needed, got True", "top.count"),
        ({"count": 2**63}, r"a number below 2\*\*63 is needed", "top.count"),
        ({"flag": 1}, "a bool is needed, got 1", "top.flag"),
        ({"flag": None}, "a bool is needed, got None", "top.flag"),
        ({"name": 5}, "a str is needed, got 5", "top.name"),
        ({"shade": "grey"}, "unknown value 'grey'", "top.shade"),
        ({"inner": {"size": "x"}}, "a int is needed, got 'x'", "top.inner.size"),
        ({"inner": {}}, "missing key 'size'", "top.inner"),
        ({"inner": 5}, "a mapping is needed, got 5", "top.inner"),
        ({"rat": 1}, "unknown key 'rat'", "top"),
        ({True: 1}, "unknown key True", "top"),  # YAML's `on`
    ],
)
def test_a_wrong_value_has_its_place_and_rule(data, message: str, where: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_record(Outer, {"name": "n", **data}, "top")
    assert caught.value.where == where


def test_near_misses_get_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        read(rat=1)
    assert "did you mean rate?" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        read(shade="darc")
    assert "did you mean dark?" in caught.value.hint


def test_fields_that_a_caller_gives_are_no_keys() -> None:
    assert read_record(Outer, {}, "top", name="given") == Outer("given")
    with pytest.raises(UsageError, match="unknown key 'name'"):
        read_record(Outer, {"name": "n"}, "top", name="given")
    with pytest.raises(UsageError, match="missing key 'name'"):
        read_record(Outer, {}, "top")


def test_keys_are_checked_and_the_mapping_is_passed_on() -> None:
    data = {"a": 1}
    assert check_keys(data, ["a", "b"], "top") is data
    with pytest.raises(UsageError, match=r"a mapping is needed, got \['a'\]"):
        check_keys(["a"], ["a"], "top")
