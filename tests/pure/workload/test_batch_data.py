"""Batches from JSON: what is refused, and how that is said, wherever one is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.cli.options import read_batch
from rpa_tune.errors import TraceError, UsageError
from rpa_tune.workload.batch_data import batch_from_data, weight_from_data
from rpa_tune.workload.workload import load_workload

GOOD: dict[str, Any] = {"q_lens": [1, 64], "kv_lens": [90, 64], "num_decode": 1}
MISTAKES = [
    ({**GOOD, "q_lens": []}, "q_lens: at least one number is needed, got an empty list"),
    ({**GOOD, "q_lens": [1.5, 64]}, r"q_lens\[0\]: a whole number from 1 .* got 1.5"),
    ({**GOOD, "q_lens": [True, 64]}, r"q_lens\[0\]: a whole number from 1 .* got True"),
    ({**GOOD, "q_lens": ["1", 64]}, r"q_lens\[0\]: .* got '1'"),
    ({**GOOD, "q_lens": 5}, "q_lens: a list of whole numbers is needed, got 5"),
    ({**GOOD, "q_lens": None}, "q_lens: a list of whole numbers is needed, got None"),
    ({**GOOD, "q_lens": [0, 64]}, r"q_lens\[0\]: .* got 0"),
    ({**GOOD, "kv_lens": [90, 2**40]}, r"kv_lens\[1\]: a whole number from 1 to 2147483647"),
    ({**GOOD, "kv_lens": [90]}, "2 q_lens but 1 kv_lens"),
    ({**GOOD, "kv_lens": [90, 3]}, "sequence 1: need 1 <= q_len <= kv_len, got 64 and 3"),
    ({**GOOD, "num_decode": -1}, "num_decode: a whole number from 0 .* got -1"),
    ({**GOOD, "num_decode": 3}, "num_decode=3 . num_prefill=0 exceed 2 sequences"),
    ({**GOOD, "num_prefil": 1}, "unknown field 'num_prefil'"),
    ({**GOOD, "page_table": [[0], 5]}, r"page_table\[1\]: a list of whole numbers"),
    ({**GOOD, "page_table": [[0]]}, "page_table: 1 lists for 2 q_lens"),
    ({"kv_lens": [90], "num_decode": 1}, "q_lens is missing"),
    ([1], r"an object is needed, got \[1\]"),
    (None, "an object is needed, got None"),
]


@pytest.mark.parametrize(("data", "message"), MISTAKES)
def test_batch_files_say_what_is_wrong(tmp_path: Path, data: Any, message: str) -> None:
    path = tmp_path / "batch.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=f"not a batch: {message}") as caught:
        read_batch(path)
    assert "Error" not in str(caught.value)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"q_lens": ' + "9" * 5000 + "}"])
def test_batch_files_that_are_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "batch.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a batch"):
        read_batch(path)
    with pytest.raises(UsageError, match="not a batch"):
        read_batch(tmp_path / "nowhere.json")


def stored(batches: Any, **more: Any) -> dict[str, Any]:
    return {"schema": "rpa-workload/1", "name": "x", "source": "y", "batches": batches, **more}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *(
            (stored([{**GOOD, "weight": 1.0}, {**data, "weight": 1.0}]), rf"batches\[1\]: {text}")
            for data, text in MISTAKES
            if isinstance(data, dict)
        ),
        (stored([GOOD]), r"batches\[0\]: weight: a number above 0 is needed, got None"),
        (stored([{**GOOD, "weight": float("nan")}]), "weight: a number above 0 is needed, got nan"),
        (stored([{**GOOD, "weight": -1}]), "weight: a number above 0 is needed, got -1"),
        (stored([{**GOOD, "weight": 0.5}]), "weights that sum to 0.5, not 1"),
        (stored([]), "has no batches"),
        (stored({}), "batches: a list is needed, got {}"),
        (stored([5]), r"batches\[0\]: an object is needed, got 5"),
        (stored([], name=5), "name: a text is needed, got 5"),
        ({"schema": "rpa-workload/1"}, "name: a text is needed, got None"),
        ({"schema": 7}, "schema 7 is not"),
    ],
)
def test_stored_workloads_say_what_is_wrong(tmp_path: Path, data: Any, message: str) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TraceError, match=f"not a workload: .*{message}") as caught:
        load_workload(str(path), page_size=16)
    assert "Error" not in str(caught.value)


def test_a_good_batch_is_read(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    path.write_text(json.dumps(GOOD))
    (weighted,) = read_batch(path).batches
    assert (weighted.batch.q_lens, weighted.batch.num_decode) == ((1, 64), 1)


def test_every_field_of_a_batch_is_read() -> None:
    data = {
        **GOOD, "kv_lens": [90, 2**31 - 1], "num_decode": 0, "num_prefill": 1, "page_seed": 3,
        "page_table": [[4], [0, 7]], "weight": 0.5,
    }  # fmt: skip
    batch = batch_from_data(data, also_known=("weight",))
    assert batch == Batch(
        q_lens=(1, 64), kv_lens=(90, 2**31 - 1), num_decode=0, num_prefill=1, page_seed=3,
        page_table=((4,), (0, 7)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="unknown field 'weight', there are q_lens, kv_lens"):
        batch_from_data(data)


def test_a_long_value_is_cut_in_what_is_said() -> None:
    with pytest.raises(ValueError, match=r"got 'x+\.\.\.$") as caught:
        batch_from_data({**GOOD, "q_lens": "x" * 1000})
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", [0, -1, True, "1", None, float("inf"), float("nan")])
def test_a_weight_is_a_number_above_0(value: Any) -> None:
    assert weight_from_data(2) == 2.0
    with pytest.raises(ValueError, match="weight: a number above 0 is needed"):
        weight_from_data(value)
