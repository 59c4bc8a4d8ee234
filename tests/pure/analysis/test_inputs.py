"""Calls take what options and plans take: mappings, paths, lists; all else is one clear error."""

import functools
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import rpa_tune
from rpa_kernels.batch import Batch
from rpa_tune.analysis.question import make_question
from rpa_tune.cli.main import cli
from rpa_tune.errors import UsageError
from rpa_tune.workload.workload import load_workload

SERVER = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 8, "max_num_batched_tokens": 64,
          "max_model_len": 1024, "page_size": 128}  # fmt: skip
UNTUNED = {**SERVER, "kv_dtype": "float8_e5m2"}  # which no shipped row has
REQUESTS = {"count": 30, "prompt_tokens": 100, "output_tokens": 20}
MAPPING = {"requests": REQUESTS, "arrivals": {"process": "poisson", "request_rate": 4}}
ONE = {"page_sizes": (128,), "kv_dtypes": ("bfloat16",), "tps": (1,)}


@pytest.fixture
def trace(tmp_path) -> Path:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{second},100,20\n" for second in range(30))
    path.write_text(f"time,prompt_tokens,output_tokens\n{rows}")
    return path


CALLS = {
    "advise": lambda workload: rpa_tune.advise(SERVER, workload=workload, compiles=0, **ONE),
    "plan_for": lambda workload: rpa_tune.plan_for(SERVER, workload=workload),
    "plan of audit": lambda workload: rpa_tune.audit(UNTUNED).plan_text(workload),
    "explain": lambda workload: make_question(
        chip="v6e", family="decode", model="llama3-8b", workload=workload
    ),
    "load_workload": functools.partial(load_workload, page_size=128),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_workload_is_a_path_or_a_mapping_with_one(call, trace) -> None:
    for workload in (trace, {"requests": {"trace": trace}}, MAPPING):
        assert CALLS[call](workload)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("workload", [None, ["azure-conv"], 3], ids=str)
def test_no_workload_is_one_error(call, workload) -> None:
    with pytest.raises(UsageError) as caught:
        CALLS[call](workload)
    assert "a workload is the name of a preset, a file or a mapping, got" in str(caught.value)


def test_advice_on_a_mapping_is_that_on_the_same_requests_in_a_file(trace) -> None:
    found = [CALLS["advise"](workload) for workload in (trace, {"requests": {"trace": trace}})]
    assert found[0].rows == found[1].rows


def test_what_takes_seconds_is_said() -> None:
    lines: list[str] = []
    settings = {**ONE, "page_sizes": (128, 256)}
    rpa_tune.advise(SERVER, workload=MAPPING, compiles=0, said=lines.append, **settings)
    served = [line for line in lines if line.startswith("served with pages of ")]
    assert [line.split()[4] for line in served] == ["128", "256"]


def test_a_fleet_is_records_mappings_or_a_file(tmp_path, trace) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump([SERVER]))
    server = rpa_tune.Server(**SERVER)
    for fleet in (server, SERVER, [server, SERVER], (SERVER,), file, str(file)):
        assert rpa_tune.plan_for(fleet, workload=trace).servers == (server,)
    for bad, message in ((3, "servers=3 must be a list"), ([3], "got int"), ([], "no server")):
        with pytest.raises(UsageError, match=message):
            rpa_tune.plan_for(bad, workload=trace)


def test_lists_are_lists_and_names_are_found_however_they_are_spelt(trace) -> None:
    advise = functools.partial(rpa_tune.advise, SERVER, workload=trace, compiles=0)
    found = advise(page_sizes=[128], kv_dtypes=["fp8"], tps=[1], weight_dtype="fp8")
    assert found.weight_dtype == "float8_e4m3fn"
    assert {row.setting.kv_dtype for row in found.rows} == {"bfloat16", "float8_e4m3fn"}
    for bad, message in (
        ({"page_sizes": 128}, "page_sizes=128 must be a list"),
        ({"page_sizes": "128,256"}, "must be a list"),
        ({"kv_dtypes": "bfloat16"}, "kv_dtypes='bfloat16' must be a list"),
        ({"tps": [1.5]}, "tp=1.5 must be an integer"),
        ({"weight_dtype": "fp6"}, "weight_dtype='fp6' is not one of float32"),
    ):
        with pytest.raises(UsageError) as caught:
            advise(**bad)
        assert message in str(caught.value)
    for families in ("decode", ["x"]):
        with pytest.raises(UsageError, match="families="):
            rpa_tune.plan_for(SERVER, workload=trace, families=families)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"page_size": "128"}, "page_size='128' must be an integer"),
        ({"tp": 2.0}, "tp=2.0 must be an integer"),
        ({"tp": None}, "tp=None must be an integer"),
        ({"model": None}, "model: NoneType given"),
        ({"model": {"num_attention_heads": 8}}, "model: dict given"),
        ({"config": "bkv_sz=512"}, "config='bkv_sz=512' must be a mapping of fields"),
        ({"layers": ["full"]}, "no layers that a kernel family serves for layers=['full']"),
    ],
    ids=str,
)
def test_what_no_question_can_have_is_one_error(given, message) -> None:
    batch = Batch(q_lens=(1,), kv_lens=(9,), num_decode=1)
    asked = {"chip": "v6e", "family": "decode", "model": "llama3-8b", "workload": batch}
    with pytest.raises(UsageError) as caught:
        make_question(**{**asked, **given})
    assert message in str(caught.value)


def test_a_plan_is_a_file_or_a_mapping_with_its_keys(trace) -> None:
    plan = {"chip": "v6e", "model": "llama3-8b", "families": ("decode",), "page_size": 128,
            "workload": trace}  # fmt: skip
    assert rpa_tune.load_plan(plan).chips == ("v6e",)
    with pytest.raises(UsageError, match="a plan is a file"):
        rpa_tune.load_plan(Batch(q_lens=(1,), kv_lens=(1,), num_decode=1))
    with pytest.raises(UsageError, match="which a plan has no form for"):
        rpa_tune.load_plan({**plan, "workload": {1, 2}})


def test_a_few_layers_of_attention_are_no_zero_milliseconds(trace) -> None:
    """Granite 4 H-Tiny has four: the table says two digits of what they take."""
    options = ["--model", "granite4-h-tiny", "--chip", "v6e", "--bounds", "--page-sizes", "256",
               "--tps", "1", "--kv-dtypes", "bfloat16", "--workload", str(trace)]  # fmt: skip
    result = CliRunner().invoke(cli, ["advise", *options], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if "head_along_sublane" in line]
    decode, share = (cell.strip() for cell in row.split("│")[5:7])
    assert re.fullmatch(r"≥ 0\.0*[1-9]\d", decode), decode
    assert re.fullmatch(r"≥ 0\.0*[1-9]%|≥ [1-9]\d*%", share), share
