"""YAML with line numbers: values of each kind, and every mistake with its line."""

from pathlib import Path

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.sweep.nodes import Node, parse_seconds, read_yaml

TEXT = """\
# a comment
name: decode
sizes: [1, 2 pages,
  3]
deep:
  - key: 5
    other: 90s
"""


def read(tmp_path: Path, text: str) -> Node:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return read_yaml(path)


def line_of(node: Node) -> int:
    return int(node.where.rpartition(":")[2])


def scalar(value) -> Node:
    return Node(value=value, where="p:1")


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    root = read(tmp_path, TEXT)
    assert root.value == {"name": "decode", "sizes": [1, "2 pages", 3],
                          "deep": [{"key": 5, "other": "90s"}]}  # fmt: skip
    entries = root.entries(["name", "sizes", "deep"], "the plan")
    assert {name: line_of(node) for name, node in entries.items()} == {
        "name": 2, "sizes": 3, "deep": 5,
    }  # fmt: skip
    assert [line_of(item) for item in entries["sizes"].items()] == [3, 3, 4]
    inner = entries["deep"].items()[0].entries(["key", "other"], "deep")
    assert [line_of(node) for node in inner.values()] == [6, 7]
    assert entries["name"].items() == [entries["name"]]  # one value is a list of one


def test_an_entry_that_is_used_twice_is_written_once(tmp_path: Path) -> None:
    root = read(tmp_path, "a: &it\n  - 1\nb: *it\n")
    assert root.value == {"a": [1], "b": [1]}
    assert line_of(dict(root.children)["b"]) == 3


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [1, 2", 1, "not YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML: but found another document"),
        ("a:\n\t1", 2, "not YAML: found character"),
        ("b: 1\n? [1]\n: 3\n", 2, "not YAML: a key must be a plain name"),
        ("b: 1\na: !foo 3", 2, "not YAML: could not determine a constructor"),
        # Values that look like a kind and are none of it.
        ("b: 1\na: 2026-13-45", 2, "not YAML: 2026-13-45 is no timestamp"),
        ("b: 1\na: !!int abc", 2, "not YAML: abc is no int"),
        ("a: !!bool maybe", 1, "not YAML: maybe is no bool"),
        # YAML 1.1 reads 8, 90 and 90.5: no one who writes a plan means that.
        ("b: 0x10\nc: 1_000\nd: '010'\na: 010", 4, "not YAML: 010 is one number in YAML 1.1"),
        ("b: 1\na: 1:30", 2, "not YAML: 1:30 is one number in YAML 1.1"),
        ("b: 0.5\na: [-1:30.5]", 2, "not YAML: -1:30.5 is one number in YAML 1.1"),
        (
            "b: 1\na: " + "9" * 5000,
            2,
            "not YAML: 9999999999999999999999999999999999999999 is no int",
        ),
        ("a: 1\nb: \x07", 2, r"not YAML: unacceptable character '\\x07'"),
    ],
)
def test_what_is_no_yaml_has_a_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.where == f"{tmp_path / 'p.yaml'}:{line}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "the plan is empty"),
        ("a: &it\n  b: *it\n", "nested too deeply, or in itself"),
        ("[" * 1000, "nested too deeply, or in itself"),
    ],
)
def test_files_without_a_plan_have_a_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.where == str(tmp_path / "p.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the plan: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(UsageError, match="cannot read the plan: 'utf-8' codec"):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\na: 2", 2, "key 'a' appears twice in top"),
        ("a: 1\nbb: 2", 2, "unknown key 'bb' in top"),
        ("on: 1", 1, "unknown key True in top"),  # YAML 1.1
        ("[1]", 1, r"top must be a mapping, got \[1\]"),
    ],
)
def test_keys_that_cannot_be(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text).entries(["a", "b"], "top")
    assert caught.value.where.endswith(f":{line}")
    if "bb" in message:
        assert caught.value.hint.startswith("did you mean b?")


def test_names_and_choices() -> None:
    assert scalar("x").text() == "x"
    assert scalar("LLaMA_3 8B").choice(["llama3-8b"], "model") == "llama3-8b"
    assert scalar("trillium").choice(["v6e"], "chip", {"trillium": "v6e"}) == "v6e"
    for wrong in (5, None, True, ["x"]):
        with pytest.raises(UsageError, match="expected a name"):
            scalar(wrong).text()
    with pytest.raises(UsageError, match="unknown chip 'v6f'") as caught:
        scalar("v6f").choice(["v6e", "v4"], "chip")
    assert "did you mean v6e?" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "tokens"), [(5, 5), ("5 tokens", 5), ("1 token", 1), ("3 pages", 48), ("2page", 32)]
)
def test_sizes_are_tokens_or_pages(value, tokens: int) -> None:
    assert scalar(value).tokens("bkv_sz", page_size=16) == tokens


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", "bkv_sz='5' has an unknown unit ''"),
        ("5 blocks", "bkv_sz='5 blocks' has an unknown unit 'blocks'"),
        ("1.5 pages", "bkv_sz='1.5 pages' is not a whole number"),
        ("many", "bkv_sz='many' is not a number with a unit"),
        ("-1 pages", "is not a number with a unit"),
        (0, "bkv_sz=0 must be an integer of at least 1"),
        ("999999999999 pages", "must be an integer of at least 1 and at most"),
        (None, "is not a number with a unit"),
        (1.5, "bkv_sz=1.5 is not a whole number"),
    ],
)
def test_what_is_no_size(value, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        scalar(value).tokens("bkv_sz", page_size=16)
    assert caught.value.where == "p:1"


def test_integers_have_the_range_of_their_name() -> None:
    assert scalar(4096).integer("tp") == 4096
    with pytest.raises(UsageError, match="tp=4097 must be an integer of at least 1 and at most"):
        scalar(4097).integer("tp")
    assert scalar(4097).integer("bkv_sz") == 4097  # no range of its own: a size
    with pytest.raises(UsageError, match="tp=True"):
        scalar(True).integer("tp")


@pytest.mark.parametrize(
    ("value", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2 h ", 7200), ("0.5s", 0.5)]
)
def test_durations_have_a_unit(value: str, seconds: float) -> None:
    assert parse_seconds(value, "deadline") == scalar(value).seconds("deadline") == seconds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("90", "deadline='90' has no unit"),
        (90, "deadline=90 has no unit"),
        ("90ms", "deadline='90ms' has an unknown unit 'ms'"),
        ("soon", "is not a number with a unit"),
        ("0s", "must be a number above 0 and at most"),
        ("1000h", "must be a number above 0 and at most 604,800 seconds"),
        ("1e3s", "is not a number with a unit"),
    ],
)
def test_what_is_no_duration(value, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_seconds(value, "deadline", where="p:7")
    assert caught.value.where == "p:7"


def test_a_duration_of_an_option_has_the_range_without_its_dashes() -> None:
    assert parse_seconds("0s", "--budget") == 0
    with pytest.raises(UsageError, match=r"--deadline=0\.0 must be"):
        parse_seconds("0s", "--deadline")
