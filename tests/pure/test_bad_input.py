"""Wrong input of every kind ends in one clear error: never a Python exception, nor its name."""

import copy
import io
import json
import math
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace

import click
import pytest
import yaml
from table_rows import PROBLEM, default_config, make_row

from rpa_kernels.problem import Problem
from rpa_tune.artifact import file as artifact
from rpa_tune.artifact.compiled import plan_of
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.capture.reader import load_recording
from rpa_tune.cli.main import cli, main
from rpa_tune.cli.numbers import NumberParam
from rpa_tune.errors import RpaTuneError, UsageError
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.records import load_records
from rpa_tune.ranges import RANGES
from rpa_tune.store import codec, journal, notes
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies
from rpa_tune.tables.reader import read_table
from rpa_tune.tables.writer import merge_into

PYTHON_WORDS = re.compile(
    r"\b(?:Key|Type|Value|Attribute|Index|ZeroDivision|Overflow|Recursion|Unicode\w+)Error\b"
    r"|Traceback|NoneType|object is not|unsupported operand|has no attribute|unexpected keyword"
)
# What stands where something else belongs.
WRONG = (
    None, True, -1, 0, 1.5, math.nan, math.inf, 10**30, 10**400, "",
    "x", "-1", [], [None], {}, {"a": 1},
)  # fmt: skip


def places(data, path=()):
    """Paths of all values of nested dicts and lists."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def mutations(data):
    """`data` with one value replaced or left out, by what was done."""
    for path in places(data):
        for wrong in (*WRONG, ...):
            changed = copy.deepcopy(data)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if wrong is ...:
                del holder[path[-1]]
            else:
                holder[path[-1]] = wrong
            yield f"{path} = {'nothing' if wrong is ... else repr(wrong)}", changed


def complaints(read, documents, allowed=RpaTuneError):
    """What is wrong with the answers of a reader to bad documents; it may also take them."""
    found = []
    for what, document in documents:
        try:
            read(document)
        except allowed as error:
            text = str(error)
            if PYTHON_WORDS.search(text) or len(text.splitlines()[0]) < 8:
                found.append(f"{what}: says {text!r}")
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}")
    return found


def whole_and(data):
    """The mutations, and documents of other shapes."""
    yield from ((f"all = {wrong!r}", wrong) for wrong in WRONG)
    yield from mutations(data)


PLAN = {
    "about": "why", "chip": "v6e", "model": "llama3-8b", "families": ["decode"], "page_size": [128],
    "dtype": "bfloat16", "kv_dtype": ["bfloat16"], "tp": [1], "workload": "azure-conv",
    "objective": "expected_time", "space": {"decode": {"bkv_sz": [256, "4 pages"]}},
    "search": {"simulate": 4, "measure": 1, "wave": 2, "configs": 1, "sampler": "auto",
               "deadline": "2m", "seed": 0, "least_gain_pct": 0.5},
    "budget": "30m",
}  # fmt: skip


def test_plans(tmp_path, monkeypatch):
    remember_workloads(monkeypatch)
    path = tmp_path / "plan.yaml"

    def read(document):
        path.write_text(yaml.safe_dump(document))
        build_studies(load_plan(path))

    read(PLAN)
    documents = [
        (what, document)
        for what, document in whole_and(PLAN)
        # A mapping as the workload is another reader.
        if not isinstance(document, dict) or document.get("workload") in ("azure-conv", 0, "x")
    ]
    assert not complaints(read, documents)


def remember_workloads(monkeypatch):
    """Makes each workload once, for all documents."""
    from rpa_tune.sweep import study

    usual = study.load_workload
    known = {}

    def load(workload, **kwargs):
        key = (repr(workload), repr(kwargs))
        if key not in known:
            known[key] = usual(workload, **kwargs)
        return known[key]

    monkeypatch.setattr(study, "load_workload", load)


def test_rows_of_tables(tmp_path):
    path = tmp_path / "v6e" / "decode.jsonl"
    path.parent.mkdir()
    merge_into(tmp_path, [make_row()])
    header, line = path.read_text().splitlines()

    def read(document):
        path.write_text(f"{header}\n{json.dumps(document)}\n")
        read_table(path)

    read(json.loads(line))
    assert not complaints(read, whole_and(json.loads(line)))

    def read_header(document):
        path.write_text(f"{json.dumps(document)}\n{line}\n")
        read_table(path)

    assert not complaints(read_header, whole_and(json.loads(header)))


MANIFEST = artifact.Manifest(
    chip="v6e", device_kind="TPU v6 lite", versions={"jax": "0"}, sources={"decode": "0"},
    executables=(
        artifact.Executable(
            name="executables/0000.bin", num_bytes=1, sha256="0" * 64, problem=asdict(PROBLEM),
            launches=({"family": "decode", "config": default_config()},),
        ),
    ),
    left_out=({"problem": {}, "launches": [], "reason": "why"},),
)  # fmt: skip


def test_manifests_of_artefacts():
    data = json.loads(MANIFEST.to_json())
    artifact.manifest_from_dict(data)
    assert not complaints(artifact.manifest_from_dict, whole_and(data), ValueError)


def test_plans_of_artefacts():
    target = load_chip("v6e").target

    def read(document):
        fields = {"problem": document["problem"], "launches": (document["launch"],)}
        plan_of(replace(MANIFEST.executables[0], **fields), target)

    (executable,) = MANIFEST.executables
    good = {"problem": executable.problem, "launch": executable.launches[0]}
    read(good)
    # `manifest_from_dict` has seen to the kinds of these.
    documents = (
        (what, document)
        for what, document in mutations(good)
        if all(isinstance(part, dict) for part in document.values())
        and document.keys() == good.keys()
        and document["launch"].keys() == good["launch"].keys()
        and isinstance(document["launch"]["family"], str)
        and isinstance(document["launch"]["config"], dict)
    )
    assert not complaints(read, documents, ValueError)


def test_recordings(tmp_path):
    path = tmp_path / "steps.jsonl"
    header = {"schema": "rpa-capture/1", "page_size": 16, "every": 1}
    launch = {"t": 0.5, "q": [1, 1], "kv": [8, 9], "nd": 2, "dropped": 1}

    def read(document):
        path.write_text(f"{json.dumps(document)}\n{json.dumps(launch)}\n")
        load_recording(path)

    def read_launch(document):
        path.write_text(f"{json.dumps(header)}\n{json.dumps(document)}\n")
        load_recording(path)

    read(header)
    read_launch(launch)
    assert not complaints(read, whole_and(header))
    assert not complaints(read_launch, whole_and(launch))


ANSWER = Evaluation(
    candidate=Candidate(
        family=load_family("decode"), problem=PROBLEM, chip=load_chip("v6e"), workload="0" * 16,
        config=load_family("decode").config_from_dict(default_config()),
    ),
    fidelity=Fidelity.SIMULATED, status=Status.OK, time_us=1.0, batch_us=(1.0,),
    provenance={"jax": "0"},
)  # fmt: skip
STUDY = ANSWER.candidate.study
STORED = {
    "answer": codec.encode(ANSWER),
    "plan": notes.encode(notes.StudyPlan(name="a", study=STUDY, num_evaluations=3,
                                         heuristic={"bq_sz": 8}, stamp=("", "", "0", ""),
                                         sampler={"kind": "tpe", "optuna": "5.0.0"})),
    "note": notes.encode(notes.StudyNote(
        name="a", study=STUDY, verdict="tuned",
        stopped=(notes.Stopped(reason="bounded", detail="why", config={"bq_sz": 8}),))),
}  # fmt: skip


@pytest.mark.parametrize("line", STORED)
def test_stores_and_their_status(tmp_path, line):
    path = tmp_path / "store.jsonl"
    header = json.dumps({"schema": codec.SCHEMA}).encode() + b"\n"
    others = b"".join(stored for name, stored in STORED.items() if name != line)

    def read(document):
        path.write_bytes(header + json.dumps(document).encode() + b"\n" + others)
        contents = journal.read(path)
        if not contents.damaged_lines:
            for options in ((), ("--stops",), ("--json",)):
                assert run("status", str(path), *options)[0] == 0

    document = json.loads(STORED[line])
    read(document)
    assert not journal.read(path).damaged_lines
    assert not complaints(read, whole_and(document))

    def read_header(document):
        path.write_bytes(json.dumps(document).encode() + b"\n" + others)
        journal.read(path)

    assert not complaints(read_header, whole_and({"schema": codec.SCHEMA}))


RECORD = {
    "chip": "v6e", "case": "decode", "num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128,
    "page_size": 128, "num_seqs": 4, "q_len": 1, "kv_len": 1024, "max_model_len": 2048,
    "max_num_tokens": None, "q_dtype": "bfloat16", "kv_dtype": "bfloat16",
    "block_sizes": [8, 256, 8, 256], "measured_us": 10.0, "timed": "kernel device time",
    "note": "", "source": "made up",
}  # fmt: skip


def test_records_of_measured_times(tmp_path):
    path = tmp_path / "records.json"

    def read(document):
        path.write_text(json.dumps(document))
        load_records(path)

    read({"records": [RECORD]})
    assert not complaints(read, whole_and({"records": [RECORD]}))


def test_problems():
    good = asdict(PROBLEM) | {
        "out_dtype": "float32", "sliding_window": 8, "soft_cap": 2.0, "mask_value": -1e9,
        "q_scale": 1.0, "k_scale": 1.0, "v_scale": 1.0,
    }  # fmt: skip

    def read(document):
        Problem(**document)

    found = complaints(read, (m for m in mutations(good) if "nothing" not in m[0]), ValueError)
    assert not found


@pytest.mark.parametrize("name", ["q_scale", "k_scale", "v_scale"])
@pytest.mark.parametrize("value", [0, 0.0, -0.5, math.nan, math.inf, -math.inf, "1", True])
def test_scales_are_finite_and_above_zero(name, value):
    with pytest.raises(ValueError, match=name):
        replace(PROBLEM, **{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"sm_scale": math.nan}, {"sm_scale": math.inf}, {"sm_scale": None}, {"soft_cap": 0.0},
        {"soft_cap": 0}, {"soft_cap": math.nan}, {"sliding_window": 0}, {"sliding_window": 2.0},
        {"mask_value": math.nan}, {"page_size": 1}, {"page_size": 2.0}, {"head_dim": True},
        {"page_size": 2, "kv_dtype": "int8"}, {"pages_per_seq": 2**28}, {"num_pages": 2**31},
        {"max_num_seqs": 2**20, "pages_per_seq": 2**12, "page_size": 16}, {"q_dtype": ["float32"]},
        {"kv_dtype": None}, {"out_dtype": "int8"}, {"out_dtype": "float64"}, {"out_dtype": 4},
    ],
)  # fmt: skip
def test_what_no_problem_has(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(PROBLEM, **wrong)


def commands(command=cli, path=()):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))
    else:
        yield path, command


def run(*arguments):
    """Exit code and output of the command line, as a person meets it."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code or 0, out.getvalue(), err.getvalue()


NUMBERS = [
    pytest.param(path, option, id=f"{'-'.join(path)} {option.opts[-1]}")
    for path, command in commands()
    for option in command.params
    if isinstance(option.type, NumberParam)
]


def test_every_option_for_a_number_has_a_range():
    unbounded = [
        (*path, option.opts[-1])
        for path, command in commands()
        for option in command.params
        if isinstance(option.type, type(click.INT) | type(click.FLOAT) | click.IntRange)
    ]
    assert not unbounded
    assert len(NUMBERS) > 30


@pytest.mark.parametrize(("path", "option"), NUMBERS)
def test_options_for_numbers_say_their_range(path, option):
    name = option.opts[-1]
    too_small = min(-1, 2 * option.type.range.least)
    for wrong in (str(too_small), "1e400", "nan", "x", "", "1.5" * option.type.range.is_whole):
        code, out, err = run(*path, f"{name}={wrong}")
        assert (code, out) == (2, ""), (wrong, err)
        assert err.startswith(f"error: {name}="), err
        assert option.type.range.rule in err
    assert option.type.convert(option.type.range.most, option, None) == option.type.range.most


@pytest.mark.parametrize("name", RANGES)
def test_ranges_refuse_what_is_no_number(name):
    for wrong in (True, None, "1", math.nan, math.inf, -math.inf, [1]):
        with pytest.raises(UsageError, match=f"{name}=.* must be a"):
            RANGES[name].check(wrong, name)


ASKS = {
    "audit": ("audit", "--model", "llama3-8b", "--chip", "v6e"),
    "compile": ("compile", "--dry-run", "--model", "llama3-8b", "--chip", "v6e"),
    "explain": ("explain", "--family", "decode", "--model", "llama3-8b", "--chip", "v6e",
                "--workload", "azure-conv"),
    "verify": ("verify", "--family", "decode", "--model", "llama3-8b", "--chip", "v6e"),
}  # fmt: skip


@pytest.mark.parametrize("command", ASKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--page-size", "1"), "page_size=1 must be a multiple of 2"),
        (("--page-size", "2", "--kv-dtype", "int8"), "page_size=2 must be a multiple of 4"),
        (("--page-size", "1000000000"), "--page-size=1000000000 must be"),
        (("--page-size", "1000000", "--kv-dtype", "float32"), "bytes of HBM of v6e"),
    ],
)  # fmt: skip
def test_pages_that_the_call_refuses_are_refused_beforehand(command, options, message):
    code, out, err = run(*ASKS[command], *options)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        (*ASKS["explain"], "--config", "bkv_sz=-1"), (*ASKS["explain"], "--config", "bkv_sz=1e9"),
        (*ASKS["explain"], "--config", "bkv_sz=0"), (*ASKS["explain"], "--config", "=3"),
        (*ASKS["explain"], "--config", f"bkv_sz={10**30}"), 
        (*ASKS["explain"], "--config", "bq_sz=²"),
        (*ASKS["compile"], "--k-scale", "0"), (*ASKS["compile"], "--sm-scale", "nan"),
        ("audit", "--model", "", "--chip", "v6e"),
        ("sweep", "x.yaml", "--budget", "-1s"), ("sweep", ".", "--shard", "0/0"),
        ("status", "."), ("portfolio", "."), ("calibrate", ".", "--chip", "v6e"),
        ("tables", "show", "x"), ("tables", "lint", "x"), ("tables", "diff", "x", "y"),
        ("tables", "merge", "x", "--into", "y"), ("tables", "export", "x", "--format", "env"),
        ("tables", "check", "x"), ("workloads", "show", "."), ("workloads", "simulate", ""),
        ("doctor", "--chip", "x"), ("explain",), ("nothing",), ("sweep",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_refuse_in_words(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code in (1, 2, 3), err
    assert not PYTHON_WORDS.search(err), err
    assert "error" in err.lower() or "infeasible" in out


def test_a_plan_with_pages_that_do_not_fit_names_its_line(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "chip: v6e\nmodel: llama3-8b\nfamilies: [decode]\npage_size: [128, 1000000]\n"
        "workload: azure-conv\n"
    )
    with pytest.raises(UsageError, match="must fit") as refused:
        build_studies(load_plan(path))
    assert refused.value.where.startswith(f"{path}:4")
