"""`advise`: its arithmetic, its words, and the table without a compiler."""

import dataclasses
import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
from click.testing import CliRunner

import rpa_tune
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_tune.analysis import advise_times
from rpa_tune.analysis.advise import advise as public_call
from rpa_tune.analysis.advise_draft import cache_bytes
from rpa_tune.analysis.advise_record import Attention, Phase, Row, Setting, mean_phase
from rpa_tune.analysis.advise_steps import Steps
from rpa_tune.analysis.advise_words import differences
from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.cli.advise import advise_command
from rpa_tune.errors import DumpError, UsageError
from rpa_tune.evaluate.simulated import Simulation
from rpa_tune.models.server import Server
from rpa_tune.workload.batches import WeightedBatch, Workload

REQUESTS = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{i / 50},{200 + 37 * (i % 11)},{20 + i % 7}\n" for i in range(40)
)
SMALL = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "max_model_len": 2048}


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text(REQUESTS)
    return str(path)


def server(model="qwen3-8b", **others):
    return Server(model=model, **{"chip": "v6e", **SMALL, **others})


def advise(own, requests, **others):
    return public_call(
        own, workload=requests, **{"page_sizes": (128,), "tps": (own.tp,), "compiles": 0, **others}
    )


def part(family, num_layers, batch_us, set_us=()):
    return Attention(
        layers="full", num_layers=num_layers, family=family, source="heuristic", config={},
        fidelity="", time_us=0.0, interval_us=None, batch_us=batch_us, set_us=set_us,
    )  # fmt: skip


STEPS = Workload(
    name="two", source="",
    batches=(
        WeightedBatch(batch=Batch(q_lens=(1, 1), kv_lens=(9, 9), num_decode=2), weight=0.3),
        WeightedBatch(batch=Batch(q_lens=(1, 5), kv_lens=(9, 9), num_decode=1), weight=0.1),
        WeightedBatch(batch=Batch(q_lens=(1,), kv_lens=(9,), num_decode=1), weight=0.6),
    ),
)  # fmt: skip


def test_a_phase_is_the_mean_over_its_steps_of_all_layers():
    parts = [(part("decode", 2, (10.0, 4.0, 40.0)), (0, 1, 2)), (part("mixed", 2, (7.0,)), (1,))]
    decode = mean_phase(STEPS, [0, 2], parts, [100.0, 0.0, 400.0])
    assert decode.attention_us == pytest.approx(2 * (10 * 0.3 + 40 * 0.6) / 0.9)
    assert decode.rest_us == pytest.approx((100 * 0.3 + 400 * 0.6) / 0.9)
    assert decode.step_us == decode.attention_us + decode.rest_us
    assert decode.attention_share == pytest.approx(decode.attention_us / decode.step_us)
    assert decode.fidelity == "bound"
    assert decode.interval_us is None
    prefill = mean_phase(STEPS, [1], parts, None)
    assert prefill.attention_us == 2 * (4 + 7)
    assert prefill.step_us is prefill.attention_share is None
    assert mean_phase(STEPS, [], parts, None) is None


def test_sets_add_up_one_by_one_and_a_part_without_them_leaves_a_bound():
    sets = ((10.0, 12.0), (4.0, 5.0), (40.0, 42.0))
    timed = part("decode", 3, (11.0, 4.5, 41.0), sets)
    decode = mean_phase(STEPS, [0, 2], [(timed, (0, 1, 2))], None)
    assert decode.set_us == pytest.approx(
        [3 * (10 * 0.3 + 40 * 0.6) / 0.9, 3 * (12 * 0.3 + 42 * 0.6) / 0.9]
    )
    assert decode.fidelity == "simulated"
    bound = part("mixed", 3, (1.0,))
    both = [(timed, (0, 1, 2)), (bound, (1,))]
    assert mean_phase(STEPS, [1], both, None).fidelity == "bound"
    assert mean_phase(STEPS, [0, 2], both, None).fidelity == "simulated"  # it launches no mixed


def row(page_size=128, kv_dtype="bfloat16", tp=1, sets=(100.0, 110.0), **others):
    phase = Phase(attention_us=sum(sets) / len(sets), set_us=sets, rest_us=300.0)
    defaults = {"kv_token_bytes": 1000, "kv_useful_bytes": 1000, "kv_tokens": 5000}
    setting = Setting(page_size=page_size, kv_dtype=kv_dtype, tp=tp)
    return Row(setting=setting, decode=phase, **{**defaults, **others})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (row(page_size=512, sets=(50.0, 55.0)),
         "pages of 512 instead of 128: decode attention 2.00x faster (2.00 to 2.00x, simulated), "
         "the step 1.15x faster with the rest by roofline."),
        (row(page_size=64, sets=(110.0, 108.0)),
         "pages of 64 instead of 128: decode attention alike (0.91 to 1.01x, simulated)."),
        (row(page_size=32, sets=(200.0, 220.0)),
         "pages of 32 instead of 128: decode attention 2.00x slower (0.50 to 0.50x, simulated), "
         "the step 1.26x slower with the rest by roofline."),
        (row(kv_dtype="float8_e4m3fn", kv_useful_bytes=500),
         "float8_e4m3fn instead of bfloat16 in the KV cache: decode attention alike (1.00 to "
         "1.00x, simulated); no bytes are saved: a token takes 1,000 bytes in this layout either "
         "way, 500 of them K and V."),
        (row(tp=4, kv_token_bytes=500, kv_heads_repeated=2, kv_tokens=20_000),
         "tp 4 instead of 1: decode attention alike (1.00 to 1.00x, simulated); 500 bytes a token "
         "on each device, 1/2 as many; every KV head is stored 2 times over the devices; room for "
         "20,000 tokens instead of 5,000 (4.00x)."),
        (row(tp=4, kv_tokens=0),
         "tp 4 instead of 1: decode attention alike (1.00 to 1.00x, simulated); the weights do not "
         "fit."),
    ],
)  # fmt: skip
def test_differences_are_said_with_their_numbers(other, said):
    assert differences([row(), other], row()) == [said]


def test_two_changes_bounds_and_what_cannot_be_had_are_not_compared():
    both = row(page_size=512, tp=4)
    refused = Row(setting=Setting(page_size=1, kv_dtype="bfloat16", tp=1), refusal="no")
    bound = dataclasses.replace(row(page_size=256), decode=Phase(attention_us=1.0))
    assert differences([row(), both, refused, bound], row()) == []
    assert differences([row(page_size=256)], refused) == []


def test_steps_have_the_same_lengths_whatever_the_page_size(requests):
    steps = Steps(requests, server(), None)
    lengths = [
        [(wb.batch.q_lens, wb.batch.kv_lens, wb.weight) for wb in steps.at(size).batches]
        for size in (64, 256)
    ]
    assert lengths[0] == lengths[1]
    assert steps.at(64).digest != steps.at(256).digest  # their pages are not the same
    assert steps.at(64) is steps.at(64)
    assert max(sum(q) for q, _, _ in lengths[0]) <= 256


def test_the_pace_of_the_model_decides_what_runs_together(requests):
    slow = {"weights_us": 20_000.0, "us_per_token": 1.0, "us_per_context_token": 0.0}
    quick = {**slow, "weights_us": 10.0}
    fullest = [
        max(wb.batch.num_seqs for wb in Steps(requests, server(), clock).at(128).batches)
        for clock in (slow, quick)
    ]
    assert fullest[0] > fullest[1]


def test_sequences_that_verify_drafts_are_decodes(tmp_path):
    batch = Batch(q_lens=(4, 4), kv_lens=(50, 60), num_decode=0)
    stored = Workload(name="drafts", source="x", batches=(WeightedBatch(batch=batch, weight=1.0),))
    path = tmp_path / "drafts.json"
    path.write_text(json.dumps(stored.to_dict()))
    found = advise(server(num_speculative_tokens=3), str(path), kv_dtypes=("bfloat16",)).own
    assert found.prefill is None
    (mixed,) = found.attention
    assert (mixed.family, found.decode.attention_us) == ("mixed", 36 * mixed.time_us)
    plain = advise(server(), str(path), kv_dtypes=("bfloat16",)).own
    assert plain.decode is None


def test_stored_steps_beyond_the_servers_limits_are_refused(tmp_path):
    batch = Batch(q_lens=(1,) * 20, kv_lens=(50,) * 20, num_decode=20)
    stored = Workload(name="big", source="x", batches=(WeightedBatch(batch=batch, weight=1.0),))
    path = tmp_path / "big.json"
    path.write_text(json.dumps(stored.to_dict()))
    with pytest.raises(UsageError, match="has a step of 20, more than max_num_seqs=16"):
        Steps(str(path), server(), None).at(128)
    (kept,) = Steps(str(path), server(max_num_seqs=32), None).at(128).batches
    assert kept.batch.kv_lens == batch.kv_lens


def test_it_is_a_call_of_the_package():
    assert rpa_tune.advise is public_call


def test_float8_with_one_kv_head_a_device_saves_no_bytes_in_this_layout(requests):
    found = advise(server(tp=8, page_size=128), requests, tps=(1, 8))
    assert found.own.setting == Setting(page_size=128, kv_dtype="bfloat16", tp=8)
    rows = {one.setting: one for one in found.rows}
    by = {(one.kv_dtype, one.tp): rows[one] for one in rows if one.layout == "head_along_sublane"}
    bf16, fp8 = by["bfloat16", 8], by["float8_e4m3fn", 8]
    # 36 layers, one head of 128: K and V in bfloat16; float8 fills half of a 32-bit word.
    assert bf16.kv_token_bytes == fp8.kv_token_bytes == 36 * 2 * 128 * 2
    assert fp8.kv_useful_bytes == 36 * 2 * 128
    assert by["float8_e4m3fn", 1].kv_token_bytes == by["bfloat16", 1].kv_token_bytes / 2
    assert any("no bytes are saved" in line for line in found.differences)
    # The other layout pads nothing, and is a row where that saves bytes.
    others = {(one.kv_dtype, one.tp): one for one in rows if one.layout == "seq_along_lane"}
    assert set(others) == {("float8_e4m3fn", 8)}
    assert rows[others["float8_e4m3fn", 8]].kv_token_bytes == fp8.kv_useful_bytes
    assert all(one.decode.fidelity == "bound" for one in found.rows)
    room = 0.9 * 34.4e9 - 2 * found.server.loaded.weights.total_params
    assert by["bfloat16", 1].kv_tokens == int(room / by["bfloat16", 1].kv_token_bytes) // 128 * 128
    assert (found.compile_is, found.startup_s) == ("a guess", 8.0 * found.own.num_kernels)


def test_settings_that_cannot_be_had_are_rows_that_say_why(requests):
    found = advise(server("qwen3-32b", tp=8, page_size=128), requests, tps=(1, 8, 3))
    by = {one.setting.tp: one for one in found.rows if one.setting.kv_dtype == "bfloat16"}
    assert by[1].kv_tokens == 0  # 65 GB of weights in 34 GB
    assert "qwen3-32b cannot run at tp=3" in by[3].refusal
    assert [one.setting.tp for one in found.rows][:2] == [8, 8]
    assert {one.setting.tp for one in found.rows[-2:]} == {3, 1} or by[3] in found.rows[-2:]


def test_smaller_pages_in_which_sglang_jax_runs_fewer_sequences_cannot_be_had(requests):
    flags = {"engine": "sglang-jax", "max_model_len": 2**18, "max_num_batched_tokens": 256}
    own = server(**flags, page_size=128, max_num_seqs=64)
    asked = {"page_sizes": (32, 256), "kv_dtypes": ("bfloat16", "fp8")}
    rows = {
        (r.setting.page_size, r.setting.kv_dtype): r for r in advise(own, requests, **asked).rows
    }
    assert "runs at most 16 sequences in pages of 32 tokens" in rows[32, "bfloat16"].refusal
    assert "no such cache" in rows[256, "float8_e4m3fn"].refusal
    assert not rows[128, "bfloat16"].refusal
    assert not rows[256, "bfloat16"].refusal


def test_the_servers_own_setting_is_an_error_where_no_kernel_has_it(requests, monkeypatch):
    monkeypatch.setattr(
        "rpa_tune.analysis.advise_draft.select",
        lambda *_: Infeasible(limit="x", need=2, have=1, unit="bytes"),
    )
    with pytest.raises(UsageError, match="no decode kernel for full layers") as caught:
        advise(server(), requests)
    assert caught.value.where == "the server's options"


def test_every_kind_of_layers_counts_with_its_number(requests):
    found = advise(server("gemma4-e2b", chip="v7x"), requests, kv_dtypes=("bfloat16",))
    kinds = {(one.layers, one.num_layers, one.family) for one in found.own.attention}
    shared = {"full shared cache", "window 512 shared cache"}
    assert {name for name, _, _ in kinds} == {"full", "window 512", *shared}
    # Layers that read another's cache have none: 3 full of 512, 12 windowed of 256, one head.
    assert found.own.kv_token_bytes == 2 * 2 * (3 * 512 + 12 * 256)
    assert cache_bytes(found.server) == (found.own.kv_token_bytes, found.own.kv_useful_bytes)
    times = {(one.layers, one.family): one.time_us * one.num_layers for one in found.own.attention}
    decode = sum(us for (_, family), us in times.items() if family == "decode")
    assert found.own.decode.attention_us == pytest.approx(decode, rel=0.5)
    assert "whole context" in " ".join(found.notes)


def test_what_is_not_known_or_not_served_is_said(requests):
    unknown = advise(server("gemma3n-e4b"), requests, kv_dtypes=("bfloat16",))
    assert unknown.own.kv_tokens is unknown.own.decode.attention_share is None
    assert any("'gemma3n_text' are not known here" in note for note in unknown.notes)
    hybrid = advise(server("nemotron3-nano-30b-a3b"), requests, kv_dtypes=("bfloat16",))
    assert hybrid.own.decode.attention_share < 0.5
    assert any("46 layers without attention" in note for note in hybrid.notes)
    with pytest.raises(UsageError, match="sparse attention"):
        advise(server("deepseek-v3.2", page_size=128), requests)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"compiles": -1}, "compiles=-1"),
        ({"kv_dtypes": ("fp7",)}, "kv_dtype='fp7' is not one of"),
        ({"tps": (0,)}, "tp=0"),
        ({"page_sizes": (2.5,)}, "page_size=2.5"),
        ({"weight_dtype": "x"}, "weight_dtype='x'"),
    ],
)
def test_bad_questions_are_one_error(requests, others, message):
    with pytest.raises(UsageError, match=message):
        advise(server(), requests, **others)


class _Simulator:
    """Twice the bound under one set of parameters, three times under the other."""

    asked: ClassVar[list[int]] = []
    fails: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **_):
        self.closed = False

    def simulate_all(self, candidates, workload):
        for candidate in candidates:
            self.asked.append(candidate.problem.page_size)
            (bound,) = advise_times.AnalyticalEvaluator().evaluate_all([candidate], workload)
            ok = candidate.family.name not in self.fails
            evaluation = Evaluation(
                candidate=candidate,
                fidelity=Fidelity.SIMULATED,
                status=Status.OK if ok else Status.COMPILE_FAILED,
                detail="" if ok else "no",
                time_us=2.5 * bound.time_us if ok else None,
                batch_us=tuple(2.5 * us for us in bound.batch_us) if ok else (),
                metrics={"interval_us": [0, 1], "lower_s": 1.0, "compile_s": 4.0} if ok else {},
            )
            sets = [SimpleNamespace(set_us=(2 * us, 3 * us)) for us in bound.batch_us]
            yield Simulation(evaluation=evaluation, timelines=tuple(sets) if ok else ())

    def prepare(self, chips):
        self.asked.append([chip.name for chip in chips])
        if "unread" in self.fails:
            raise DumpError("opcodes that rpa-tune does not know")

    def close(self):
        self.closed = True


@pytest.fixture
def simulator(monkeypatch):
    monkeypatch.setattr(advise_times, "SimulatedEvaluator", _Simulator)
    monkeypatch.setattr(_Simulator, "asked", [])
    monkeypatch.setattr(_Simulator, "fails", ())
    return _Simulator


def test_whole_settings_are_simulated_nearest_first_as_far_as_compiles_go(requests, simulator):
    said = []
    found = advise(
        server(page_size=128), requests, page_sizes=(32, 64, 256), compiles=5, said=said.append
    )
    # The chip's compiler is probed first.
    assert simulator.asked == [["v6e"], 128, 128, 64, 64]
    assert [one.is_simulated for one in found.rows][:3] == [True, True, False]
    assert [one.setting.page_size for one in found.rows][:4] == [128, 64, 256, 32]
    low, high = found.own.decode.interval_us
    assert low < found.own.decode.attention_us < high
    assert (found.compile_s, found.compile_is) == (5.0, "measured here, with what else ran")
    assert any(
        note.startswith("4 of 16 kernels were simulated; compiles=16") for note in found.notes
    )
    rest = [line for line in said if not line.startswith("served with pages of ")]
    assert rest[0] == "8 settings, 16 kernels; 4 are simulated"
    assert len(rest) == 5
    assert len(said) == 5 + 4  # page sizes


def test_a_kernel_without_a_time_leaves_a_bound_and_says_why(requests, simulator, monkeypatch):
    monkeypatch.setattr(simulator, "fails", ("mixed",))
    found = advise(server(), requests, compiles=2, kv_dtypes=("bfloat16",))
    assert found.own.decode.fidelity == "simulated"
    assert found.own.prefill.fidelity == "bound"
    assert any("no simulated time: v6e/mixed" in note for note in found.notes)
    (mixed,) = [one for one in found.own.attention if one.family == "mixed"]
    assert mixed.detail == "compile_failed no"


def test_schedules_that_are_not_understood_end_it_before_the_first_kernel(
    requests, simulator, monkeypatch
):
    monkeypatch.setattr(simulator, "fails", ("unread",))
    with pytest.raises(DumpError, match="does not know"):
        advise(server(), requests, compiles=2, kv_dtypes=("bfloat16",))
    assert simulator.asked == [["v6e"]]
    assert advise(server(), requests, compiles=0, kv_dtypes=("bfloat16",)).rows  # bounds need none


def test_an_interruption_closes_the_workers(requests, simulator, monkeypatch):
    closed = []

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulator, "simulate_all", interrupt)
    monkeypatch.setattr(simulator, "close", lambda _: closed.append(True))
    with pytest.raises(KeyboardInterrupt):
        advise(server(), requests, compiles=12)
    assert closed == [True]


def run(requests, *arguments):
    words = ["--chip", "v6e", "--workload", requests, "--max-num-seqs", "16",
             "--max-num-batched-tokens", "256", "--max-model-len", "2048", "--page-sizes", "128",
             "--page-size", "128", *arguments]  # fmt: skip
    return CliRunner().invoke(advise_command, words)


def test_the_command_prints_the_table_or_json(requests, simulator):
    arguments = ("--model", "qwen3-8b", "--tps", "1,16", "--compiles", "2")
    result = run(requests, *arguments)
    assert result.exit_code == 0, result.output
    assert "layers of qwen3-8b: 36 full" in result.output
    assert "≥" in result.output
    assert "v6e/decode" in result.stderr
    assert "does not fit" not in result.output
    report = json.loads(run(requests, *arguments, "--json").stdout)
    first = report["rows"][0]
    assert (first["page_size"], first["kv_dtype"], first["tp"], first["layout"]) == (
        128, "bfloat16", 1, "head_along_sublane",
    )  # fmt: skip
    assert first["decode"]["attention_is"] == "simulated"
    assert first["decode"]["rest_is"] == "roofline"
    assert report["rows"][1]["decode"]["attention_is"] == "bound"
    assert any(one["tp"] == 16 and one["kv_heads_repeated"] == 2 for one in report["rows"])
    assert report["startup"]["compile_is"].startswith("measured here")
    assert report["server"]["max_num_seqs"] == 16


def test_layers_without_a_kernel_and_failures_are_exit_code_3(requests, simulator, monkeypatch):
    chunked = run(
        requests, "--model", "llama4-scout", "--tp", "8", "--tps", "8", "--bounds",
        "--max-model-len", "16384",
    )  # fmt: skip
    assert chunked.exit_code == (3 if "chunk 8192 layers are left out" in chunked.output else 0)
    refused = run(
        requests, "--model", "qwen3-8b", "--tps", "1,3", "--bounds", "--kv-dtypes", "bf16, fp8"
    )  # fmt: skip
    assert (
        "not possible: page 128, bfloat16, head_along_sublane, tp 3 and 1 other setting: "
        "qwen3-8b cannot run at tp=3" in refused.output
    )
    monkeypatch.setattr(simulator, "fails", ("mixed",))
    assert run(requests, "--model", "qwen3-8b", "--tps", "1").exit_code == 3
    assert run(requests, "--model", "deepseek-v3.2").exit_code != 0
