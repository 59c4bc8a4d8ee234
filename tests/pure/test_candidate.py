"""A candidate holds its family and chip; its JSON form and its identity name them."""

import pickle
from dataclasses import replace

import pytest
from pure.evaluate.builders import PROBLEM, candidate

from rpa_kernels.problem import ADDED_FIELDS, problem_from_dict
from rpa_tune.candidate import (
    Candidate,
    Correctness,
    Evaluation,
    Fidelity,
    Status,
    method_of,
)
from rpa_tune.evaluate.correctness import CheckTask
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.store import codec
from rpa_tune.tables.row import FIDELITIES

PUBLIC = load_family("public-v3-decode")
# (digest, study) of the two candidates when both held names.
DECODE = ("448a0645c93fa4ca", "c70f0fcc93226b3b")
PUBLIC_V3 = ("ff3268e691c26959", "2a0f7af773c2092b")


def public_candidate():
    config = PUBLIC.config_type(bq_sz=1, bkv_sz=128, bq_csz=1, bkv_csz=64)
    return Candidate(
        family=PUBLIC, problem=PROBLEM, config=config, chip=load_chip("v5p"), workload="0" * 16
    )


def test_identities_are_those_that_stores_were_written_with():
    assert (candidate().digest, candidate().study) == DECODE
    assert (public_candidate().digest, public_candidate().study) == PUBLIC_V3
    assert candidate().title == "v6e/decode, 8/2 heads of 128, bfloat16, page 16"


@pytest.mark.parametrize("made", [candidate(), public_candidate()], ids=["own", "public"])
def test_the_json_form_names_family_and_chip_and_gives_the_same_objects_back(made):
    data = made.to_dict()
    assert (data["family"], data["chip"]) == (made.family.name, made.chip.name)
    found = Candidate.from_dict(data)
    assert found == made
    assert found.family is made.family
    assert hash(found) == hash(made)


def test_fields_that_came_later_are_left_out_where_they_are_off():
    """Stores, and shared storages, of earlier versions keep their digests."""
    made = candidate()
    assert not set(ADDED_FIELDS) & set(made.to_dict()["problem"])
    chunked = replace(made, problem=replace(made.problem, attention_chunk_size=64))
    assert chunked.to_dict()["problem"]["attention_chunk_size"] == 64
    assert Candidate.from_dict(chunked.to_dict()) == chunked
    assert problem_from_dict(chunked.problem.to_dict()) == chunked.problem
    assert len({made.digest, chunked.digest}) == len({made.study, chunked.study}) == 2
    assert chunked.title.endswith("page 16, chunk 64")


def test_fields_of_a_config_that_came_later_may_be_missing():
    """Rows and journals without `strided_copies` hold what they held: linear copies."""
    made = candidate()
    family, fields = made.family, made.to_dict()["config"]
    assert "strided_copies" not in fields
    assert family.config_from_dict({**fields, "strided_copies": 0}) == made.config
    strided = replace(made, config=replace(made.config, strided_copies=1))
    assert strided.to_dict()["config"] == {**fields, "strided_copies": 1}
    assert Candidate.from_dict(strided.to_dict()) == strided
    assert strided.digest != made.digest
    with pytest.raises(ValueError, match=r"missing \['bkv_csz'\], unknown \['copies'\]"):
        family.config_from_dict({n: 1 for n in (*fields, "copies") if n != "bkv_csz"})


def test_a_task_reaches_a_worker_by_name_and_is_still_the_same_question():
    asked = public_candidate()
    task = CheckTask(
        family=asked.family, problem=asked.problem, config=asked.config, chip=asked.chip, batch=None
    )
    for sent in (asked, task):
        found = pickle.loads(pickle.dumps(sent))
        assert found == sent
        assert hash(found) == hash(sent)
        assert found.family is sent.family


def test_chips_are_told_apart_by_their_numbers_too():
    chip = load_chip("v6e")
    number = replace(chip.numbers["clock_hz"], value=1.0)
    other = replace(chip, numbers={**chip.numbers, "clock_hz": number})
    assert other != chip
    assert replace(candidate(), chip=other) != candidate()
    assert hash(other) == hash(chip)  # fewer fields than equality: no harm but a slower look-up


@pytest.mark.parametrize(
    "changes", [{"chip": "v9"}, {"chip": "trillium"}, {"chip": None}, {"chip": ["v6e"]},
                {"family": "public-of-tomorrow"}, {"family": None}, {"family": ["decode"]}],
)  # fmt: skip
def test_a_line_about_an_unknown_family_or_chip_is_refused_as_damaged(changes):
    answer = Evaluation(
        candidate=candidate(), fidelity=Fidelity.SIMULATED, status=Status.OK, time_us=1.0
    )
    data = codec.to_dict(answer)
    assert codec.from_dict(data) == answer
    data["candidate"] |= changes
    with pytest.raises(ValueError, match=r"not an evaluation|unknown family|unknown chip"):
        codec.from_dict(data)


def test_tables_name_the_same_fidelities_and_the_interpreter_is_none():
    assert tuple(fidelity.name.lower() for fidelity in Fidelity) == FIDELITIES
    assert [method_of(name) for name in FIDELITIES] == [*Fidelity]
    assert method_of("interpreted") is Correctness.INTERPRETED
    with pytest.raises(ValueError, match="'guessed' is no fidelity"):
        method_of("guessed")
    checked = Evaluation(candidate=candidate(), fidelity=Correctness.INTERPRETED, status=Status.OK)
    assert codec.to_dict(checked)["fidelity"] == "interpreted"
    assert codec.from_dict(codec.to_dict(checked)) == checked
    with pytest.raises(ValueError, match="interpreted is no fidelity"):
        _ = checked.rung
