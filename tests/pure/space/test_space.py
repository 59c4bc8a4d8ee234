"""Axes, the cross product, and reasons for what is left out."""

from dataclasses import replace

import pytest
from fake_sweep import AXES, PROBLEM
from table_rows import LATENT as ALL_HEADS

from rpa_kernels import FAMILIES, load_family
from rpa_tune.hw.chip import load_chips
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import build_space, is_larger_everywhere

V6E = load_chips()["v6e"].target

LATENT = replace(ALL_HEADS, num_q_heads=16)


def test_an_axis_must_rise():
    for values in ((), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="must rise"):
            Axis(name="bkv_sz", values=values)


def test_positions_are_in_the_unit_interval_and_rise():
    axis = Axis(name="bkv_sz", values=(128, 256, 512))
    assert [axis.position(v) for v in (64, 128, 192, 256, 512, 4096)] == [0, 0, 0.25, 0.5, 1, 1]
    assert Axis(name="x", values=(7,)).position(7) == 0


@pytest.mark.parametrize("chip", load_chips())
@pytest.mark.parametrize("name", FAMILIES)
def test_every_point_is_a_config_or_has_a_reason(name, chip):
    family, target = load_family(name), load_chips()[chip].target
    problem = LATENT if name.startswith("mla-") else PROBLEM
    space = build_space(family, problem, target)
    grid = 1
    for values in family.search_axes(problem, target).values():
        grid *= len(values)
    assert space.num_points == grid
    assert space.configs
    assert len(set(space.configs)) == len(space.configs)
    assert all(family.check(problem, config, target) is None for config in space.configs)
    assert set(space.examples) == set(space.rejected)


def test_overrides_replace_values_and_unknown_ones_are_refused():
    space = build_space(load_family("decode"), PROBLEM, V6E, {"bkv_sz": [512, 256, 512]})
    assert {config.bkv_sz for config in space.configs} == {256, 512}
    with pytest.raises(ValueError, match="no axis 'bq'"):
        build_space(load_family("decode"), PROBLEM, V6E, {"bq": [1]})


def test_rejections_are_explained_by_limit():
    space = build_space(load_family("decode"), PROBLEM, V6E, {**AXES, "bkv_sz": (100, 256)})
    assert space.rejected["bkv_sz % page_size"] == space.num_points // 2
    assert "bkv_sz % page_size" in space.explain_rejections()[0]
    assert not build_space(load_family("decode"), PROBLEM, V6E, {"bkv_sz": (100,)}).configs


def test_larger_everywhere_is_a_strict_partial_order():
    space = build_space(load_family("decode"), PROBLEM, V6E, AXES)
    first, last = space.configs[0], max(space.configs, key=space.coordinates)
    assert not is_larger_everywhere(first, first, space.axes)
    assert is_larger_everywhere(last, first, space.axes) != is_larger_everywhere(
        first, last, space.axes
    )
