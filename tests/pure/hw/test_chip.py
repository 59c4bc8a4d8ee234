"""The chip table against JAX's own, and its evidence rules."""

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import (
    CONFIDENCES,
    chip_of_device_kind,
    chip_spellings,
    load_chip,
    load_chips,
)
from rpa_tune.llo.ensemble import load_sets

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")

JAX_NAMES = {
    "vmem_bytes": "vmem_capacity_bytes",
    "smem_bytes": "smem_capacity_bytes",
    "hbm_bytes": "hbm_capacity_bytes",
    "hbm_bytes_per_s": "mem_bw_bytes_per_second",
    "bf16_flops_per_s": "bf16_ops_per_second",
    "fp8_flops_per_s": "fp8_ops_per_second",
    "int8_ops_per_s": "int8_ops_per_second",
    "mxu_size": "mxu_column_size",
    "num_mxus": "num_mxus",
}


def test_the_five_chips_are_there_in_order():
    assert tuple(load_chips()) == CHIPS


@pytest.mark.parametrize("name", CHIPS)
def test_numbers_equal_those_of_jax(name):
    from jax.experimental.pallas import tpu as pltpu

    chip = load_chip(name)
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[chip.jax_chip_version], 1)
    for ours, theirs in JAX_NAMES.items():
        assert (chip.numbers[ours].value or 0) == getattr(info, theirs), ours


@pytest.mark.parametrize("name", CHIPS)
def test_every_number_has_source_and_confidence(name):
    for key, number in load_chip(name).numbers.items():
        assert number.source, key
        assert number.confidence in CONFIDENCES, key
        assert (number.value is None) == (number.confidence == "none"), key


@pytest.mark.parametrize("name", CHIPS)
def test_clock_is_peak_rate_over_flops_per_cycle(name):
    chip = load_chip(name)
    rows, size = chip.value("mxu_rows_per_cycle"), chip.value("mxu_size")
    flops_per_cycle = 2 * chip.value("num_mxus") * size * size * rows
    assert chip.clock_hz == pytest.approx(chip.bf16_flops_per_s / flops_per_cycle, rel=2e-2)


def test_device_kinds_name_one_chip_each():
    kinds = [kind for chip in load_chips().values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
    assert chip_of_device_kind("TPU v6 lite").name == "v6e"


def test_unknown_names_are_usage_errors_with_the_known_ones():
    with pytest.raises(UsageError, match="did you mean v6e"):
        load_chip("v6")
    with pytest.raises(UsageError, match="TPU7x"):
        chip_of_device_kind("Tesla")


@pytest.mark.parametrize(
    ("word", "name"),
    [("V6E", "v6e"), ("trillium", "v6e"), ("tpu v6e", "v6e"), ("v6e-8", "v6e"), ("v6e:2x4", "v6e"),
     ("tpu7x", "v7x"), ("TPU7x", "v7x"), ("Ironwood", "v7x"), ("tpu7x-128", "v7x"),
     ("v5litepod", "v5e"), ("v5litepod-16", "v5e"), ("tpu-v5-lite-podslice", "v5e"),
     ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("v5p-128", "v5p"), ("tpu-v4-podslice", "v4")],
)  # fmt: skip
def test_chips_have_other_names(word, name):
    assert load_chip(word).name == name


@pytest.mark.parametrize(
    ("word", "near"),
    [("v5", "v5e or v5p"), ("v7", "v7x"), ("trilium", "v6e")],
)
def test_what_names_no_chip_or_several_is_asked_back(word, near):
    with pytest.raises(UsageError, match=f"did you mean {near}"):
        load_chip(word)


def test_no_name_means_two_chips():
    for word, name in chip_spellings().items():
        assert load_chip(word).name == name
    for name in load_chips():
        assert load_chip(name).name == name


@pytest.mark.parametrize("name", load_chips())
def test_strided_copies_are_faster_where_the_machine_table_says_so(name):
    """By more than the interval: under every set of parameters that the evidence allows."""
    gains = [
        one.machine.value("read_strided_bytes_per_s") / one.machine.value("read_linear_bytes_per_s")
        for one in load_sets(name)
    ]
    assert load_chip(name).target.has_faster_strided_copies == (min(gains) > 1.1)
