"""Flags of libtpu: one way to write them, what counts as the same, and where they go."""

import dataclasses
import json
import logging

import pytest
from fake_sweep import make_study
from table_rows import make_row

from rpa_tune.analysis.audit import audit
from rpa_tune.artifact.compiled import package_versions
from rpa_tune.candidate import Candidate
from rpa_tune.cli.audit import tune_command
from rpa_tune.compile import lower, target
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.dispatch import dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.libtpu_args import HOST_FLAG, WITHOUT_EFFECT, args_here, difference, parse_args
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan
from rpa_tune.tables.row import row_from_dict

A, B = "--xla_tpu_a=true", "--xla_tpu_b=65536"


def test_flags_are_kept_in_one_order_however_they_are_written():
    assert parse_args(f"  {B}\t{A} ") == parse_args(f"{A} {B}") == f"{A} {B}"
    assert parse_args("") == ""
    assert parse_args("--xla_tpu_c") == "--xla_tpu_c"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("xla_tpu_a=1", "--name=value"),
        ("--xla_tpu_a true", "--name=value"),
        (f"{A} --xla_tpu_a=false", "stands once"),
        ("--xla_jf_dump_to=/tmp/x", "flags that dump"),
        ("--xla-tpu-a=1", "--name=value"),
    ],
)
def test_what_is_no_flag_is_one_error_with_its_place(text, rule):
    with pytest.raises(UsageError, match=rule) as refused:
        parse_args(text, "plan.yaml:3")
    assert refused.value.where == "plan.yaml:3"


def test_what_this_process_was_given_has_neither_dumps_nor_what_jax_adds(monkeypatch, tmp_path):
    made = target.worker_environment(tmp_path, f"{A} {B}")["LIBTPU_INIT_ARGS"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"{made} {HOST_FLAG}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert args_here() == f"{A} {B}"
    assert target.program_settings(f"{A} {B}") == {}
    assert target.program_settings(A) == {"LIBTPU_INIT_ARGS": f"{A} {B}"}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", HOST_FLAG)
    assert args_here() == ""
    assert target.program_settings() == {}
    assert target.build_environment(tmp_path, A)["LIBTPU_INIT_ARGS"] == A
    assert target.device_environment(tmp_path, A)["LIBTPU_INIT_ARGS"] == A


def test_a_plan_says_them_and_they_are_part_of_what_is_asked_compiled_and_kept(tmp_path):
    path = tmp_path / "plan.yaml"
    text = "chip: v6e\nmodel: llama3-8b\nfamilies: [decode]\npage_size: 128\nworkload: azure-conv\n"
    path.write_text(f"{text}libtpu_args: [{B}, {A}]\n")
    assert load_plan(path).libtpu_args == f"{A} {B}"
    path.write_text(f"{text}libtpu_args: nonsense\n")
    with pytest.raises(UsageError) as refused:
        load_plan(path)
    assert refused.value.where == f"{path}:6"
    plain = make_study()
    study = dataclasses.replace(plain, libtpu_args=A)
    assert study.digest != plain.digest
    config = study.heuristic()
    with_flags, without = study.candidate(config), plain.candidate(config)
    assert "libtpu_args" not in without.to_dict()  # as it was before there were any
    assert compile_key(with_flags) != compile_key(without)
    assert Candidate.from_dict(json.loads(json.dumps(with_flags.to_dict()))) == with_flags


def test_a_worker_with_other_flags_than_the_candidate_refuses_to_compile_it(tmp_path):
    study = dataclasses.replace(make_study(), libtpu_args=A)
    with pytest.raises(RuntimeError, match="a candidate made with LIBTPU_INIT_ARGS=--xla_tpu_a"):
        lower.compile_candidate(study.candidate(study.heuristic()), CompileCache(tmp_path))


def test_a_row_keeps_them_and_other_rows_stay_as_they_were():
    row = make_row()
    assert "libtpu_args" not in row.to_dict()["evidence"]
    flagged = dataclasses.replace(row, evidence=dataclasses.replace(row.evidence, libtpu_args=A))
    data = json.loads(json.dumps(flagged.to_dict()))
    assert row_from_dict(data, chip=row.key.chip, family=row.key.family) == flagged
    for wrong in (f"{B} {A}", "nonsense"):
        data["evidence"]["libtpu_args"] = wrong
        with pytest.raises(ValueError, match="libtpu_args"):
            row_from_dict(data, chip=row.key.chip, family=row.key.family)


def test_a_flag_that_changes_no_schedule_makes_no_row_another():
    (flag,) = WITHOUT_EFFECT  # of every server of tpu-inference
    assert difference("", flag) == difference(flag, "") == difference(A, f"{A} {flag}") == ""
    assert A in difference("", f"{A} {flag}")


def test_an_artefact_of_other_flags_differs_like_one_of_another_version():
    assert package_versions(A) == package_versions() | {"LIBTPU_INIT_ARGS": A}


def test_the_dispatcher_says_once_that_its_rows_were_made_with_other_flags(monkeypatch, caplog):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    loaded = dispatcher.load_dispatcher("v6e")
    (row, *_) = [row for row in loaded.tables if row.key.family == "decode"]
    flagged = dataclasses.replace(row, evidence=dataclasses.replace(row.evidence, libtpu_args=A))
    choice = dispatcher.Choice(
        key=row.key, source=dispatcher.Source.EXACT, found="", configs=(), row=flagged
    )
    with caplog.at_level(logging.WARNING, logger="rpa_tune.dispatch"):
        loaded._say_other_flags(choice)
        loaded._say_other_flags(choice)
        assert [r.getMessage() for r in caplog.records] == [
            f"rows of v6e are used that were {difference(A, '')}"
        ]
        monkeypatch.setenv("LIBTPU_INIT_ARGS", f"{A} {HOST_FLAG}")
        dispatcher.load_dispatcher("v6e")._say_other_flags(choice)
    assert len(caplog.records) == 1


def test_an_audit_counts_rows_that_were_made_with_other_flags_than_the_servers():
    server = Server(
        model="llama3-8b", chip="v6e", max_num_seqs=64, max_num_batched_tokens=1024, page_size=128
    )
    assert not audit(server).other_flags
    found = audit(server, libtpu_args=f"{B} {A}")
    (text,) = found.other_flags
    assert text == f"made with LIBTPU_INIT_ARGS=none, here {A} {B}"
    assert found.other_flags[text] == sum(entry.made_with is not None for entry in found.entries)
    command = tune_command(server, None, "heuristic", "azure-conv", found.libtpu_args)
    assert command.endswith(f"--libtpu-args '{A} {B}'")
