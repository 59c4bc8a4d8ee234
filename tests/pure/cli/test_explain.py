"""`rpa-tune explain` with a stand-in for the compiler: options, output, exit codes."""

import json
from dataclasses import replace

import pytest
from fake_sweep import FormulaEvaluator
from pure.evaluate.builders import CONFIG

from rpa_tune.analysis import second_opinion
from rpa_tune.candidate import Fidelity
from rpa_tune.cli.explain_text import NOT_TRIED
from rpa_tune.cli.main import main
from rpa_tune.cli.question import resolve_question
from rpa_tune.compile import process
from rpa_tune.evaluate import simulated
from rpa_tune.hw.chip import load_chip
from rpa_tune.report.words import BOUNDS
from rpa_tune.store.journal import Journal

CONFIG_TEXT = ",".join(f"{k}={v}" for k, v in CONFIG.items())


@pytest.fixture(autouse=True)
def fake_task(monkeypatch):
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate")


@pytest.fixture
def batch_file(tmp_path):
    path = tmp_path / "batch.json"
    path.write_text(json.dumps({"q_lens": [1, 1, 9], "kv_lens": [300, 20, 9], "num_decode": 2}))
    return path


@pytest.fixture
def run(tmp_path, batch_file, capsys):
    """Runs the command; options given replace the good ones, None leaves one out."""

    def run(**options):
        good = {
            "chip": "v6e", "family": "decode", "model": "llama3-8b", "batch": str(batch_file),
            "config": CONFIG_TEXT, "cache": str(tmp_path / "cache"), "deadline": "20",
        }  # fmt: skip
        args = ["explain"]
        for name, value in (good | options).items():
            if value is True:
                args.append(f"--{name}")
            elif value is not None:
                args += [f"--{name}", str(value)]
        with pytest.raises(SystemExit) as exited:
            main(args)
        out = capsys.readouterr()
        return exited.value.code or 0, out.out, out.err

    return run


def test_json_has_the_promised_keys_and_owners_that_add_up(run):
    code, out, _ = run(json=True)
    answer = json.loads(out)
    assert code == 0
    assert answer["status"] == "ok"
    assert sum(answer["cycles_by_owner"].values()) == answer["total_cycles"] > 0
    for key in ("time_us", "mbu", "mfu", "bound_by", "hbm_bytes", "vmem_bytes", "lower_bound_us"):
        assert answer[key] is not None
    assert answer["config"] == CONFIG
    assert len(answer["batches"]) == 1
    assert answer["batches"][0]["weight"] == 1.0


def test_text_says_time_bound_owners_and_what_is_guessed(run):
    code, out, _ = run()
    assert code == 0
    assert "time " in out
    assert BOUNDS["hbm"] in out
    assert f"advice    {NOT_TRIED}" in out
    assert "cycles by cause" in out
    assert "issue" in out
    assert "guessed parameters: none" in out
    assert "2 decode, 0 prefill and 1 mixed sequences" in out


def test_the_compilers_own_estimate_stands_beside_ours_when_it_is_asked_for(run, monkeypatch):
    monkeypatch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
    monkeypatch.setattr(second_opinion, "TASK", "pure.compile.pool_tasks:profile_around")
    _, out, _ = run(**{"second-opinion": True})
    clock_hz = load_chip("v6e").clock_hz
    assert f"around the kernel: {3_500 / clock_hz * 1e6:.2f} us of XLA's operations (3, " in out
    assert "  copy.1  2 times\n" in out
    _, out, _ = run(**{"second-opinion": True, "json": True})
    opinion = json.loads(out)["second_opinion"]
    assert opinion["around_us"] == pytest.approx(3_500 / clock_hz * 1e6)
    assert [one["name"] for one in opinion["around"]] == ["copy.1", "pad"]
    assert "second_opinion" not in json.loads(run(json=True)[1])
    monkeypatch.setattr(second_opinion, "TASK", "pure.compile.pool_tasks:fail")
    code, out, _ = run(**{"second-opinion": True})
    assert "second opinion: none: compile_failed: ValueError" in out
    assert code == 0


def test_without_config_it_is_the_default(run):
    code, out, _ = run(config=None, json=True, deadline="1")
    answer = json.loads(out)
    assert answer["is_default_config"] is True
    assert set(answer["config"]) == set(CONFIG)
    assert code in (0, 1)  # the stand-in misbehaves for some numbers of buffers


def test_some_fields_change_the_default(run):
    _, out, _ = run(config="num_buffers=2,bq_sz=16", json=True)
    answer = json.loads(out)
    assert (answer["config"]["num_buffers"], answer["config"]["bq_sz"]) == (2, 16)
    assert answer["is_default_config"] is False


@pytest.mark.parametrize(
    ("config", "status", "detail"),
    [("bkv_sz=100,bkv_csz=100", "infeasible", "page_size"), ("num_buffers=9", "out_of_memory", "")],
)
def test_no_time_is_exit_code_1_with_the_reason_and_all_keys(run, config, status, detail):
    code, out, _ = run(config=f"num_buffers=2,{config}" if "bkv" in config else config, json=True)
    answer = json.loads(out)
    assert code == 1
    assert answer["status"] == status
    assert detail in answer["detail"]
    assert answer["time_us"] is answer["total_cycles"] is answer["cycles_by_owner"] is None
    code, out, _ = run(config=config)
    assert code == 1
    assert f"{status}: " in out
    assert "hint:" not in out


def test_a_compile_that_takes_too_long_is_told_what_may_help(run):
    code, out, err = run(config="num_buffers=4", deadline="1")
    assert code == 1
    assert "compile_timeout: still in phase " in out
    assert "\nhint: --deadline gives it longer" in out
    assert "starting a worker process" in err


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"chip": "v8"}, "unknown chip 'v8'", "known chips"),
        ({"model": "lama3-8b"}, "unknown model", "did you mean llama3-8b?"),
        ({"batch": None, "workload": "azure"}, "unknown workload 'azure'", "azure-conv"),
        ({"batch": None}, "give either --workload or --batch", ""),
        ({"config": "bkv=3"}, "'bkv' is not a field", "bkv_sz"),
        ({"config": "bkv_sz=3,bkv_sz=4"}, "must be name=integer, each name once", ""),
        ({"config": "bkv_sz=x"}, "must be name=integer, each name once", ""),
        ({"config": "bkv_sz=-1"}, "must be name=integer, each name once", ""),
        ({"tp": 3}, "cannot run at tp=3", "use one of"),
        ({"page-size": 0}, "--page-size=0", ""),
        ({"windowed": True}, "no layers that a kernel family serves for windowed=True", "32 full"),
        ({"layers": "window-8"}, "for layers='window-8'", "32 full"),
        ({"family": "decoder"}, "'decoder' is not one of decode", "did you mean decode?"),
    ],
)
def test_bad_options_are_usage_errors(run, options, message, hint):
    code, out, err = run(**options)
    assert code == 2
    assert out == ""
    assert message in err
    assert hint in err


@pytest.mark.parametrize(
    "content", ["", "[]", '{"q_lens": [1]}', '{"q_lens": [1], "kv_lens": [0], "num_decode": 1}']
)
def test_a_bad_batch_file_is_named(run, tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    code, _, err = run(batch=str(path))
    assert code == 2
    assert str(path) in err
    assert "num_decode" in err


def test_hints_about_a_trace_name_a_command_that_has_the_option(run, tmp_path):
    trace = tmp_path / "my trace.csv"
    trace.write_text("time,prompt_tokens,output_tokens\n0,5,5\n1,-3,5\n")
    code, out, err = run(batch=None, workload=trace)
    assert (code, out) == (2, "")
    command = f"rpa-tune workloads import '{trace}' -o stored.json --drop-bad"
    assert f"hint: fix the row, or skip bad rows with `{command}`" in err
    assert "`--workload stored.json`" in err


def test_it_says_as_what_a_trace_was_read(run, tmp_path):
    trace = tmp_path / "trace.jsonl"
    row = '{"timestamp": %d, "input_length": 300, "output_length": 5}\n'
    trace.write_text(row % 0 + row % 500)
    code, _, err = run(batch=None, workload=trace)
    assert code == 0
    assert f"workload {trace}: trace {trace} (Mooncake; times in ms" in err
    assert "2 requests in 0.5000 s, 2.000 a second" in err


def test_a_batch_that_does_not_launch_the_family(run, tmp_path):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"q_lens": [9], "kv_lens": [9], "num_decode": 0}))
    code, _, err = run(batch=str(path))
    assert code == 2
    assert "never launches family 'decode'" in err


@pytest.fixture
def by_bytes(monkeypatch, tmp_path):
    """Times by what a neighbour would change: copies, and bytes of the cache."""
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate_by_bytes")
    monkeypatch.chdir(tmp_path)


NO_TRIES = {"config": None, "kv-dtype": "bfloat16"}


def test_without_tries_only_the_bound_is_said(run, by_bytes):
    """Each bound had a fixed sentence of advice, wrong where it was tried."""
    code, out, _ = run(**NO_TRIES)
    assert code == 0
    assert "advice    none: no neighbouring config has a time; --tries 8" in out
    for text in (*BOUNDS.values(), out):
        for word in ("would help", "larger", "faster memory", "more buffers"):
            assert word not in text
    answer = json.loads(run(**NO_TRIES, json=True)[1])
    assert (answer["advice"], answer["neighbours"]) == ("", [])


def test_advice_comes_from_neighbours_that_were_tried(run, by_bytes):
    code, out, err = run(**NO_TRIES, tries=30)
    assert code == 0
    advice = next(line for line in out.splitlines() if line.startswith("advice"))
    assert "page size 256 instead of 128 takes" in advice
    assert "(simulated)" in advice
    for change in (
        "page size 64 instead of 128",
        "float8_e4m3fn cache instead of bfloat16",
        "bq_sz=32 instead of 16",
    ):
        assert f"{change} (tried)" in out
    assert "1 of " in err  # progress
    answer = json.loads(run(**NO_TRIES, tries=30, json=True)[1])
    by_change = {n["change"]: n for n in answer["neighbours"]}
    larger = by_change["page size 256 instead of 128"]
    assert larger["page_size"] == 256
    assert larger["speedup"] == pytest.approx(answer["time_us"] / larger["time_us"])
    assert larger["speedup"] > 1.05
    assert by_change["page size 64 instead of 128"]["speedup"] < 1
    # Exactly one thing differs: a page size, a cache, or one field of the config.
    for neighbour in answer["neighbours"]:
        same_problem = (neighbour["page_size"], neighbour["kv_dtype"]) == (128, "bfloat16")
        changed = [k for k, v in answer["config"].items() if neighbour["config"][k] != v]
        assert len(changed) == 1 if same_problem else True


def test_nothing_faster_is_an_answer(run, by_bytes):
    """Of a config at its best no advice is made up: the nearest of those tried is named."""
    _, out, _ = run(**NO_TRIES | {"page-size": 1024, "kv-dtype": "fp8"}, tries=3)
    advice = next(line for line in out.splitlines() if line.startswith("advice"))
    assert "none of " in advice
    assert "faster by more than the simulator's error of 5 %" in advice


def test_tries_are_a_budget(run, by_bytes):
    answer = json.loads(run(**NO_TRIES, tries=2, json=True)[1])
    assert sum(n["how"] == "tried" for n in answer["neighbours"]) == 2


def test_answers_of_a_sweep_are_neighbours_too(run, by_bytes, tmp_path, batch_file):
    question = resolve_question(
        chip="v6e", family="decode", model="llama3-8b", workload=None, batch_file=batch_file,
        config_text="", tp=1, page_size=128, q_dtype="bfloat16", kv_dtype="bfloat16",
        windowed=None,
    )  # fmt: skip
    own = question.candidate
    made = FormulaEvaluator(Fidelity.SIMULATED)
    faster = replace(own, config=replace(own.config, num_buffers=2))
    older = replace(own, config=replace(own.config, num_buffers=3))
    elsewhere = replace(faster, chip=load_chip("v5e"))
    with Journal(tmp_path / ".rpa-tune" / "chat.jsonl") as journal:
        journal.append(replace(made.answer(faster), time_us=1.0, batch_us=(1.0,)))
        stale = {**made.answer(older).provenance, "kernel": "another"}
        journal.append(replace(made.answer(older), time_us=0.5, provenance=stale))
        journal.append(replace(made.answer(elsewhere), time_us=0.5))
    answer = json.loads(run(config=None, json=True)[1])
    assert [(n["how"], n["change"], n["time_us"]) for n in answer["neighbours"]] == [
        ("stored", "num_buffers=2 instead of 4", 1.0)
    ]
    assert answer["advice"].startswith("num_buffers=2 instead of 4 takes 1.0 us")


def test_what_is_no_store_is_said(run, by_bytes, tmp_path):
    """A file that a person named must be one; another in the folder is left out aloud."""
    (tmp_path / ".rpa-tune").mkdir()
    (tmp_path / ".rpa-tune" / "old.jsonl").write_text('{"schema":"rpa-store/0"}\n')
    code, _, err = run(**NO_TRIES)
    assert code == 0
    assert "old.jsonl is left out: unknown store schema" in err
    code, _, err = run(**NO_TRIES, store=".rpa-tune/old.jsonl")
    assert code == 1
    assert "unknown store schema" in err


def test_padding_is_said(run):
    """A float8 cache of one KV head has as many bytes as a bfloat16 one."""
    _, out, _ = run(tp=8, **{"kv-dtype": "fp8"})
    assert "float8_e4m3fn moves as many bytes as bfloat16 would" in out
    _, out, _ = run(tp=4, **{"kv-dtype": "fp8"})
    assert "padding" not in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chip": "TPU7x"}, "decode on v7x:"), ({"chip": "ironwood"}, "decode on v7x:"),
        ({"chip": "V6E"}, "decode on v6e:"), ({"chip": "trillium"}, "decode on v6e:"),
        ({"chip": "v5litepod"}, "decode on v5e:"), ({"chip": "v5litepod-16"}, "decode on v5e:"),
        ({"kv-dtype": "fp8"}, "float8_e4m3fn cache"), ({"q-dtype": "FP32"}, "float32 queries"),
        ({"family": "Decode"}, "decode on v6e:"),
        ({"model": "Qwen/Qwen3-32B", "tp": 4}, "v6e: qwen3-32b, 16 query and 2 KV heads"),
        ({"model": "llama_3.2_1b", "config": None, "deadline": "1"}, "v6e: llama3.2-1b, 32 query"),
    ],
)  # fmt: skip
def test_common_spellings_are_understood(run, options, said):
    _, out, err = run(**options)
    assert said in out, err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"chip": "v5"}, "did you mean v5e or v5p?"),
        ({"kv-dtype": "e4m3"}, "did you mean float8_e4m3fn?"),
        ({"q-dtype": "fp16"}, "did you mean"),
        ({"family": "mix"}, "did you mean mixed?"),
        ({"model": "qwen/qwen3-33b"}, "did you mean qwen3-32b?"),
        ({"batch": None, "workload": "azur-conv"}, "did you mean azure-conv?"),
    ],
)
def test_what_is_near_a_name_is_offered(run, options, hint):
    code, _, err = run(**options)
    assert code == 2
    assert hint in err
