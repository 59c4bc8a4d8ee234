"""tokamax's kernel as families: what it refuses, what it chooses, where it can run."""

import json
import platform
from dataclasses import asdict, replace
from importlib import metadata

import numpy as np
import pytest
from fake_sweep import make_study
from table_rows import PROBLEM, timed_row

from rpa_kernels.infeasible import Infeasible
from rpa_tune.errors import UsageError
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.tokamax import table
from rpa_tune.interop.public.tokamax.families import TOKAMAX
from rpa_tune.interop.public.tokamax.package import PACKAGE, WHEEL
from rpa_tune.interop.tokamax_tables import export_tables
from rpa_tune.sweep.seeds import neighbour_seeds, winners_before

V6E = load_chip("v6e").target
DECODE = BatchedConfig(bq_sz=1, bq_c_sz=1, bkv_sz=256, batch_size=4, n_buffer=3)
MIXED = BatchedConfig(bq_sz=64, bq_c_sz=32, bkv_sz=256, batch_size=2, n_buffer=2)
CONFIGS = {"public-tokamax-decode": DECODE, "public-tokamax-mixed": MIXED}


def limit_of(name, problem=PROBLEM, target=V6E, **blocks):
    bad = TOKAMAX[name].check(problem, replace(CONFIGS[name], **blocks), target)
    return bad and bad.limit


@pytest.mark.parametrize("name", TOKAMAX)
def test_blocks_that_the_operator_takes(name):
    assert load_family(name) is TOKAMAX[name]
    assert limit_of(name) is None
    assert limit_of(name, replace(PROBLEM, head_dim=64)) is None  # padded to whole lanes
    assert limit_of(name, replace(PROBLEM, sliding_window=128, soft_cap=30.0)) is None


@pytest.mark.parametrize("name", TOKAMAX)
@pytest.mark.parametrize(
    ("blocks", "limit"),
    [({"n_buffer": 5}, "n_buffer"), ({"n_buffer": 0}, "n_buffer"),
     ({"bkv_sz": 2 * 128 + 16}, "bkv_sz % 128"), ({"batch_size": 1 << 20}, "vmem_bytes"),
     ({"bkv_sz": -256}, "bkv_sz")],
)  # fmt: skip
def test_blocks_that_it_does_not_take(name, blocks, limit):
    assert limit_of(name, **blocks) == limit


def test_query_blocks():
    assert limit_of("public-tokamax-decode", bq_sz=2) == "bq_sz"
    assert limit_of("public-tokamax-mixed", bq_sz=72, bq_c_sz=36) == "bq_sz % 16"
    assert limit_of("public-tokamax-mixed", bq_sz=64, bq_c_sz=48) == "bq_sz % bq_c_sz"
    assert limit_of("public-tokamax-mixed", bq_sz=16, bq_c_sz=8) == "bq_c_sz % 16"


@pytest.mark.parametrize("name", TOKAMAX)
@pytest.mark.parametrize(
    ("change", "limit"),
    [({"has_sinks": True}, "sinks"), ({"kv_dtype": "int8"}, "kv_dtype int8"),
     ({"update_kv_cache": False}, "features"), ({"out_dtype": "float32"}, "features")],
)  # fmt: skip
def test_calls_that_no_blocks_mend(name, change, limit):
    assert limit_of(name, replace(PROBLEM, **change)) == limit


@pytest.mark.parametrize("name", TOKAMAX)
def test_a_chip_that_it_does_not_know(name):
    target = load_chip("v4").target
    assert limit_of(name, target=target) == "chip"
    assert TOKAMAX[name].default_config(PROBLEM, target).limit == "chip"


@pytest.mark.parametrize("name", TOKAMAX)
@pytest.mark.parametrize(
    ("python", "jax", "says"),
    [("3.11.9", "0.12.0", "need Python 3.12, this is 3.11.9"),
     ("3.12.1", "0.11.0", "need jax 0.11.1, this is 0.11.0"), ("3.13.0", "0.11.1", "")],
)  # fmt: skip
def test_where_it_cannot_run_it_says_so(monkeypatch, name, python, jax, says):
    monkeypatch.setattr(platform, "python_version", lambda: python)
    monkeypatch.setattr(metadata, "version", lambda _: jax)
    assert says in TOKAMAX[name].unavailable
    assert bool(says) is bool(TOKAMAX[name].unavailable)
    chosen = TOKAMAX[name].default_config(PROBLEM, V6E)
    if says:
        assert isinstance(chosen, Infeasible)
        assert says in str(chosen)
        TOKAMAX[name].fetch("/nowhere")  # nothing is fetched that cannot be used
    else:
        assert chosen.n_buffer == 3
        assert limit_of(name, **{f: getattr(chosen, f) for f in ("bq_sz", "bq_c_sz")}) is None


@pytest.mark.parametrize("name", TOKAMAX)
def test_its_axes_hold_its_own_choice_wherever_blocks_of_512_tokens_make_sense(monkeypatch, name):
    monkeypatch.setattr(type(PACKAGE), "unavailable", "")
    problem = replace(PROBLEM, page_size=128, pages_per_seq=64, num_pages=512)
    chosen = TOKAMAX[name].default_config(problem, V6E)
    axes = TOKAMAX[name].search_axes(problem, V6E)
    assert all(getattr(chosen, axis) in values for axis, values in axes.items())


def test_names_of_calls():
    window = replace(PROBLEM, sliding_window=512)
    decode, mixed = (TOKAMAX[n] for n in CONFIGS)
    page = PROBLEM.page_size
    assert decode.kernel_name(PROBLEM, DECODE) == f"RPAd-nhs-p{page}-b4-q1-k256"
    assert mixed.kernel_name(window, MIXED) == f"RPAm-nhs-p{page}-b2-q64-k256-sw512"


def test_a_schedule_longer_than_its_arrays_is_refused():
    pytest.importorskip("jax")
    from rpa_tune.interop.public.launches import ScheduleTooLongError
    from rpa_tune.interop.public.tokamax.calls import check_schedule

    def operands(num_steps):
        sizes = (9, 8, 8, 8, 640, 512, 128, 1)
        arrays = {i: np.zeros(size, np.int32) for i, size in enumerate(sizes)}
        return arrays | {7: np.array([num_steps], np.int32)}

    check_schedule(operands(128))
    with pytest.raises(ScheduleTooLongError, match="129 steps, and room for 128"):
        check_schedule(operands(129))


def written(tmp_path, monkeypatch, entries, folder="tpu7x"):
    """A table where an unpacked wheel has it."""
    file = tmp_path / "tokamax/data/autotuning" / folder / table.FILE
    file.parent.mkdir(parents=True)
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    monkeypatch.setattr(WHEEL, "_root", tmp_path)
    return file


def entry(**blocks):
    """Blocks as the shipped rows say them, and when they were timed."""
    config = {
        "prefill_bq_sz": 64, "prefill_bq_c_sz": 32, "bkv_sz": 256, "decode_batch_size": 4,
        "prefill_batch_size": 2, "kv_layout": "HEAD_ALONG_SUBLANE", **blocks,
    }  # fmt: skip
    return json.dumps(config)


def test_an_exported_table_is_read_back(tmp_path):
    rows = [timed_row(name, configs=[asdict(replace(config, n_buffer=2))])
            for name, config in CONFIGS.items()]  # fmt: skip
    file = tmp_path / "table.json"
    file.write_text(export_tables(rows).text)
    (found,) = table.load_table(file, "v6e")
    assert (found.chip, found.problem) == ("v6e", PROBLEM)
    assert found.configs == {"decode": replace(DECODE, n_buffer=2), "mixed": MIXED}


def test_shipped_blocks_are_read_with_the_buffers_they_were_timed_with(tmp_path, monkeypatch):
    slow, fast = {"evaluation_times_ms": [0.9, 0.2, 0.9]}, {"evaluation_times_ms": [0.5] * 3}
    calls = [json.dumps(table.call_spec(replace(PROBLEM, max_num_seqs=n))) for n in (1, 2)]
    call = table.call_spec(PROBLEM)
    others = [{**call, "use_causal_mask": False}, {**call, "keys": "i4[32,2,128]"}]
    written(tmp_path, monkeypatch, {
        calls[0]: {entry(num_buffers=4): slow, entry(num_buffers=2): fast},
        calls[1]: {entry(): fast},
        **{json.dumps(other): {entry(): fast} for other in others},  # no row of ours can be these
    })  # fmt: skip
    found = table.shipped_calls()
    assert [(one.chip, one.problem.max_num_seqs) for one in found] == [("v7x", 1), ("v7x", 2)]
    assert found[0].configs["mixed"] == MIXED
    assert found[0].configs["decode"] == replace(DECODE, n_buffer=2)
    assert found[1].configs["decode"].n_buffer == 3  # the operator's own default


@pytest.mark.parametrize("name", [*TOKAMAX, "public-batched-decode", "public-batched-mixed"])
def test_a_search_starts_from_what_was_shipped(tmp_path, monkeypatch, name):
    problem = replace(PROBLEM, page_size=128, pages_per_seq=16, num_pages=256)
    call = json.dumps(table.call_spec(problem))
    written(tmp_path, monkeypatch, {call: {entry(n_buffer=2): {"evaluation_times_ms": [1.0]}}})
    case = name.rpartition("-")[2]
    study = replace(make_study(problem=problem, chip="v7x"), family=load_family(name))
    winners = winners_before([study], [], [])
    (seed,) = neighbour_seeds(study, winners)
    assert seed == {"decode": replace(DECODE, n_buffer=2), "mixed": MIXED}[case]
    # Runs that share their work may have other packages, and must ask the same.
    assert seed not in [w.config for w in winners_before([study], [], [], asks_packages=False)]


def test_families_of_other_kernels_have_nothing_shipped(tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, "no JSON")  # is not even read
    assert not list(load_family("decode").shipped_configs())
    assert not list(load_family("public-v3-mixed").shipped_configs())


WRONG = json.dumps({
    json.dumps(table.call_spec(PROBLEM)): {
        entry(bkv_sz="256"): {"evaluation_times_ms": [1.0]}
    }
})  # fmt: skip


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"1": {}}', '{"{}": {}}', WRONG])
def test_a_damaged_table_is_one_error_with_its_file(tmp_path, monkeypatch, text):
    file = written(tmp_path, monkeypatch, text)
    with pytest.raises(UsageError) as raised:
        load_family("public-tokamax-decode").shipped_configs()
    assert str(file) in str(raised.value)


def test_without_tokamax_nothing_is_shipped(monkeypatch):
    monkeypatch.setattr(WHEEL, "_root", None)

    def no_package(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", no_package)
    assert table.shipped_calls() == []
