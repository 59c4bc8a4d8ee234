"""Hashes of a prompt's blocks: which sizes can be, what is shared, what is said when none fits."""

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.blocks import settle_blocks
from rpa_tune.workload.columns import BAILIAN, BY_COLUMNS, MOONCAKE, TraceFormat
from rpa_tune.workload.draft import Draft, Refusals
from rpa_tune.workload.text_tree import TextTree


def hashed(prompt: int, count: int | None) -> Draft:
    hashes = None if count is None else tuple(range(count))
    return Draft(place=f"t:{prompt}", prompt=prompt, output=1, hashes=hashes)


def settle(
    drafts: list[Draft],
    known: TraceFormat = BY_COLUMNS,
    told: int | None = None,
    *,
    drop: bool = False,
) -> tuple[list[Draft], int | None, Refusals]:
    refusals = Refusals(drop_bad=drop)
    kept, size = settle_blocks(drafts, TextTree(), known, told, refusals)
    return kept, size, refusals


def test_a_hash_for_every_block_or_for_every_whole_one_fits() -> None:
    whole, begun, exact = hashed(100, 6), hashed(100, 7), hashed(96, 6)
    kept, size, _ = settle([whole, begun, exact], BAILIAN)
    assert (kept, size) == ([whole, begun, exact], 16)
    # The text ends with the last whole block, whether or not the rest has a hash.
    for draft in kept:
        assert [end for _, end in draft.text] == [16, 32, 48, 64, 80, 96]
    # The three begin with the same hashes, so with the same text.
    assert whole.text == begun.text == exact.text


def test_a_size_that_was_told_comes_before_the_formats() -> None:
    _, size, _ = settle([hashed(100, 4)], MOONCAKE, 32)
    assert size == 32


def test_rows_without_hashes_are_left_alone() -> None:
    plain = hashed(50, None)
    assert settle([plain], MOONCAKE)[:2] == ([plain], None)
    kept, size, _ = settle([plain, hashed(1024, 2)], MOONCAKE)
    assert (kept[0].text, size) == ((), 512)
    with pytest.raises(TraceError, match="no row has hash_ids: block_tokens=16 does not apply"):
        settle([plain], MOONCAKE, 16)


def test_an_odd_row_is_a_bad_row() -> None:
    rows = [hashed(160, 10), hashed(320, 20), hashed(64, 9)]
    with pytest.raises(TraceError, match="9 hashes for 64 prompt tokens, need 4 of 16 tokens") as e:
        settle(rows, BAILIAN)
    assert "drop_bad" in e.value.hint
    kept, _, refusals = settle(rows, BAILIAN, drop=True)
    assert kept == rows[:2]
    assert refusals.dropped == {"misfit hashes": 1}


def test_a_size_that_most_rows_contradict_is_refused_and_those_that_fit_are_named() -> None:
    rows = [hashed(640, 10), hashed(64, 1), hashed(16, 1)]
    with pytest.raises(TraceError, match="do not fit blocks of 16 tokens in 2 rows of 3") as caught:
        settle(rows, BAILIAN, drop=True)  # not row by row: the size is wrong
    assert caught.value.where == "t:640"
    assert "the numbers fit blocks of 64 tokens" in caught.value.hint
    assert caught.value.settings == ("requests: {block_tokens: 64}",)


def test_an_unknown_size_is_asked_for() -> None:
    with pytest.raises(TraceError, match="tokens per hash_ids block is unknown") as caught:
        settle([hashed(10, 1)])
    assert "blocks of 8 or 16 or 32" in caught.value.hint  # and so on: one hash says little
    with pytest.raises(TraceError) as caught:
        settle([hashed(10, 7)])
    assert caught.value.hint.endswith("with `requests: {block_tokens: N}`")
