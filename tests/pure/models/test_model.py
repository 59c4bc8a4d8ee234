"""Kinds of layers and models of them: names, shares, contexts, and which one is meant."""

import dataclasses

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.models.model import LayerKind, Model, merge_kinds

FULL = LayerKind(num_layers=4, num_q_heads=8, num_kv_heads=2, head_dim=128, sm_scale=0.1)
WINDOW = dataclasses.replace(FULL, num_layers=12, sliding_window_tokens=1024)
CHUNK = dataclasses.replace(FULL, num_layers=3, chunk_tokens=8192)
REFUSED = dataclasses.replace(FULL, num_layers=1, refusal="no kernel family")
SIZES = {
    "page_size": 16, "max_num_tokens": 16, "max_num_seqs": 4, "pages_per_seq": 8, "num_pages": 64,
}  # fmt: skip


def make(*kinds, **more):
    return Model(name="m", source="s", kinds=kinds, **more)


def replaced(kind, **changes):
    return dataclasses.replace(kind, **changes)


def test_labels_say_how_far_a_layer_reaches_and_whose_cache_it_reads() -> None:
    labels = [
        kind.label for kind in (FULL, WINDOW, CHUNK, replaced(WINDOW, reads_other_cache=True))
    ]
    assert labels == ["full", "window 1024", "chunk 8192", "window 1024 shared cache"]


def test_names_add_only_what_tells_kinds_apart() -> None:
    small = replaced(FULL, head_dim=64, num_kv_heads=1)
    scaled = replaced(FULL, sm_scale=1.0)
    model = make(FULL, WINDOW, small, scaled)
    assert [model.name_of(kind) for kind in model.kinds] == [
        "full 8/2 heads scale 0.1", "window 1024", "full 8/1 heads", "full 8/2 heads scale 1",
    ]  # fmt: skip
    assert len({model.name_of(kind) for kind in model.kinds}) == 4


def test_one_line_has_all_layers() -> None:
    model = make(FULL, replaced(REFUSED, num_layers=None), CHUNK, other_layers={"mamba": 7})
    assert model.layers_text == (
        "4 full, full (not served: no kernel family), 3 chunk 8192, 7 mamba (no attention)"
    )
    assert (model.served, model.unserved) == ((FULL, CHUNK), (model.kinds[1],))
    assert model.num_other == 7


def test_what_reaches_beyond_the_context_has_no_effect() -> None:
    assert WINDOW.within(1024).sliding_window_tokens is None
    assert WINDOW.within(1025).sliding_window_tokens == 1024
    assert (CHUNK.within(8192).chunk_tokens, CHUNK.within(8193).chunk_tokens) == (None, 8192)
    model = make(FULL, WINDOW, CHUNK)
    assert [kind.num_layers for kind in model.within(1000).kinds] == [19]
    assert [kind.num_layers for kind in model.within(5000).kinds] == [7, 12]
    with pytest.raises(UsageError, match="serves any attention layer of m: 1 full"):
        make(REFUSED).within(10000)


def test_kinds_that_are_alike_become_one_in_order_of_reach() -> None:
    shared = replaced(FULL, num_layers=2, reads_other_cache=True)
    merged = merge_kinds([WINDOW, shared, CHUNK, FULL, replaced(FULL, num_layers=1)])
    assert merged == (replaced(FULL, num_layers=5), WINDOW, CHUNK, shared)
    # A number that is not known makes the sum unknown, whichever comes first.
    unknown = replaced(FULL, num_layers=None)
    for kinds in ([unknown, FULL], [FULL, unknown], [FULL, unknown, FULL]):
        assert merge_kinds(kinds) == (unknown,)


@pytest.mark.parametrize(("tp", "heads"), [(1, (8, 2)), (2, (4, 1)), (4, (2, 1)), (8, (1, 1))])
def test_a_device_has_its_share_of_heads_and_one_kv_head_at_least(tp, heads) -> None:
    (kind,) = make(FULL).at_tp(tp).kinds
    assert (kind.num_q_heads, kind.num_kv_heads) == heads
    assert kind.num_layers == 4


@pytest.mark.parametrize("tp", [0, 3, 16])
def test_heads_that_do_not_divide_are_refused_with_what_does_for_all_kinds(tp) -> None:
    other = replaced(FULL, num_q_heads=12, num_kv_heads=4)
    with pytest.raises(UsageError, match=f"m cannot run at tp={tp}") as caught:
        make(FULL, other).at_tp(tp)
    assert caught.value.hint == "use one of [1, 2, 4]"


def test_a_problem_is_the_kinds_own_with_what_is_given() -> None:
    kind = replaced(WINDOW, soft_cap=50.0, has_sinks=True, reads_other_cache=True)
    problem = kind.problem(**SIZES)
    assert (problem.sliding_window, problem.soft_cap, problem.has_sinks) == (1024, 50.0, True)
    assert not problem.update_kv_cache
    assert kind.problem(**SIZES, sliding_window=None).sliding_window is None
    assert CHUNK.problem(**SIZES).attention_chunk_size == 8192
    with pytest.raises(UsageError, match="full layers: no kernel family"):
        REFUSED.problem(**SIZES)
    with pytest.raises(ValueError, match="page_size"):
        FULL.problem(**{**SIZES, "page_size": 0})


def test_the_kind_that_is_meant() -> None:
    model = make(WINDOW, FULL, CHUNK)
    assert model.pick() == FULL  # one without a window, if there is one
    assert model.pick(windowed=True) == WINDOW
    assert model.pick("window-1024") == WINDOW
    assert make(WINDOW).pick() == WINDOW
    assert model.pick("chunk 8192") == CHUNK


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"layers": "chunk 4096"}, "serves for layers='chunk 4096'"),
        ({"layers": "full", "windowed": True}, "for layers='full' and windowed=True"),
        ({"layers": "window 512"}, "for layers='window 512'"),
    ],
)
def test_kinds_that_are_not_there_are_refused_with_those_that_are(asked, text) -> None:
    model = make(FULL, WINDOW, CHUNK)
    with pytest.raises(UsageError, match=text) as caught:
        model.pick(**asked)
    assert caught.value.hint == f"it has {model.layers_text}"
