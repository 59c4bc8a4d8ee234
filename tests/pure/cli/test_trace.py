"""`explain --trace`: the batch that takes longest, out of the compile cache."""

import json
from dataclasses import replace

import pytest
from fake_sweep import make_study
from golden import make

from rpa_kernels.batch import Batch
from rpa_tune.analysis.schedules import load_schedules
from rpa_tune.candidate import Status
from rpa_tune.cli.trace import save_schedules, write_heaviest, write_schedules
from rpa_tune.compile.cache import CompileCache, Compiled, compile_key
from rpa_tune.errors import DumpError
from rpa_tune.libtpu_args import VARIABLE
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.sources import SOURCES_FLAG

NAME = "0.0.42.1/v6e_decode.txt.gz"
STUDY = make_study(problem=make.PROBLEM)
CANDIDATE = STUDY.candidate(STUDY.space().configs[0])
# As `explain` compiles: with source lines.
SETTINGS = {VARIABLE: SOURCES_FLAG}
KEY = compile_key(CANDIDATE, SETTINGS)
BATCHES = [Batch(q_lens=(1,), kv_lens=(n,), num_decode=1) for n in (1, 200, 16)]


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    bundles = make.unpack(make.DUMPS / NAME, tmp_path)
    CompileCache(folder).save(KEY, Compiled(status=Status.OK, bundles=bundles))
    return folder


def test_the_trace_is_that_of_the_heaviest_batch(cache, tmp_path, capsys) -> None:
    path = tmp_path / "trace.json"
    write_heaviest(CANDIDATE, BATCHES, [1.0, 5.25, 2.0], cache_dir=cache, path=path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"trace of batch 1 (5.2 us) in {path}; open it at ui.perfetto.dev\n"
    events = json.loads(path.read_text())["traceEvents"]
    read = sum(e["args"]["bytes"] for e in events if "bytes" in e.get("args", ()))
    operands = make.operands("decode", BATCHES[1])
    timeline = simulate(make.program(NAME), load_machine("v6e"), operands)
    assert read >= timeline.read_bytes + timeline.write_bytes > 200 * 512


def test_a_schedule_is_plain_text_however_it_is_kept(cache, tmp_path) -> None:
    (text,) = load_schedules(CANDIDATE, cache).values()
    assert text == make.unpack(make.DUMPS / NAME, tmp_path).read_text()


def test_a_candidate_that_was_not_compiled_is_an_error_with_the_folder(cache) -> None:
    other = replace(CANDIDATE, config=STUDY.space().configs[1])
    with pytest.raises(DumpError, match="the cache has no schedule of this candidate") as caught:
        load_schedules(other, cache)
    assert caught.value.where == str(cache)
    # Kept without a schedule: it did not compile.
    failed = Compiled(status=Status.OUT_OF_MEMORY, detail="VMEM")
    CompileCache(cache).save(compile_key(other, SETTINGS), failed)
    with pytest.raises(DumpError):
        load_schedules(other, cache)


def test_one_step_is_a_smaller_trace_with_the_kernel_and_config_in_its_title(cache, tmp_path):
    paths = [tmp_path / "whole.json", tmp_path / "step.json"]
    for path, one_step in zip(paths, (False, True), strict=True):
        write_heaviest(
            CANDIDATE, BATCHES, [1.0, 5.25, 2.0], cache_dir=cache, path=path, one_step=one_step
        )
    whole, step = (json.loads(path.read_text()) for path in paths)
    assert len(step["traceEvents"]) < len(whole["traceEvents"])
    for field, value in CANDIDATE.family.config_to_dict(CANDIDATE.config).items():
        assert f"{field}={value}" in step["otherData"]["kernel"]
    assert step["otherData"]["kernel"].startswith("decode ")


def test_a_schedule_is_saved_as_the_compiler_dumped_it(cache, tmp_path, capsys):
    path = tmp_path / "out" / "schedule.txt"
    save_schedules(CANDIDATE, cache_dir=cache, path=path)
    assert path.read_text() == make.unpack(make.DUMPS / NAME, tmp_path).read_text()
    lines = path.read_text().count("\n")
    assert capsys.readouterr().err == f"schedule of {lines:,} lines in {path}\n"


def test_schedules_of_several_calls_go_into_files_of_their_names(tmp_path, capsys):
    write_schedules({"a/b": "1\n", "c": "2\n"}, tmp_path / "out.txt")
    assert (tmp_path / "out-a_b.txt").read_text() == "1\n"
    assert (tmp_path / "out-c.txt").read_text() == "2\n"
    assert capsys.readouterr().err.count("schedule of 1 lines in") == 2
