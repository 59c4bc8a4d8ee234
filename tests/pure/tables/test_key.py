"""The key: one bucketing, idempotent, and a distance between keys."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_rows import PROBLEM, make_row

from rpa_kernels.layout import SEQ_ALONG_LANE
from rpa_kernels.problem import Problem
from rpa_tune.tables.key import differences, distance, representative, tuning_key
from rpa_tune.tables.row import row_from_dict

problems = st.builds(
    Problem,
    num_q_heads=st.sampled_from([8, 16, 32]),
    num_kv_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([64, 80, 128, 192, 256]),
    page_size=st.integers(1, 75).map(lambda n: 4 * n),  # whole words of every dtype
    max_num_tokens=st.integers(1, 5000),
    max_num_seqs=st.integers(1, 600),
    pages_per_seq=st.integers(1, 600),
    num_pages=st.integers(1, 600),
    q_dtype=st.sampled_from(["bfloat16", "float32"]),
    kv_dtype=st.sampled_from(["bfloat16", "float8_e4m3fn", "int8"]),
    soft_cap=st.none() | st.just(30.0),
    update_kv_cache=st.booleans(),
    has_sinks=st.booleans(),
    k_scale=st.none() | st.just(0.5),
    return_lse=st.booleans(),
    decode_query_size=st.integers(1, 8),
)
reaches = st.one_of(
    st.builds(dict, sliding_window=st.none() | st.integers(1, 100_000), causal=st.booleans()),
    st.builds(dict, attention_chunk_size=st.integers(1, 100_000)),
)
problems = st.builds(lambda problem, reach: replace(problem, **reach), problems, reaches)


@settings(deadline=None)
@given(problems)
def test_the_key_of_a_bucket_is_the_key_of_its_problems(problem):
    key = tuning_key(problem, "v6e", "decode")
    assert tuning_key(representative(key), "v6e", "decode") == key


@settings(deadline=None)
@given(problems, problems)
def test_distance_is_symmetric_and_zero_only_for_equal_keys(a, b):
    left, right = tuning_key(a, "v6e", "mixed"), tuning_key(b, "v6e", "mixed")
    assert distance(left, right) == distance(right, left)
    assert (distance(left, right) == 0) == (left == right)


@pytest.mark.parametrize(
    "change",
    [{"num_pages": 999}, {"sm_scale": 0.5}, {"mask_value": -1.0}, {"max_num_tokens": 17},
     {"max_num_seqs": 5}, {"pages_per_seq": 9}, {"sliding_window": 256},
     {"attention_chunk_size": 256}],
)  # fmt: skip
def test_what_does_not_change_the_best_config_is_not_in_the_key(change):
    assert tuning_key(replace(PROBLEM, **change), "v6e", "decode") == tuning_key(
        PROBLEM, "v6e", "decode"
    )


@pytest.mark.parametrize(
    "change",
    [{"num_q_heads": 16}, {"head_dim": 64}, {"page_size": 32}, {"max_num_tokens": 33},
     {"sliding_window": 64}, {"attention_chunk_size": 64}, {"soft_cap": 30.0},
     {"k_scale": 2.0}, {"causal": False}, {"update_kv_cache": False}, {"has_sinks": True},
     {"out_dtype": "float32"}, {"return_lse": True}, {"decode_query_size": 2}],
)  # fmt: skip
def test_what_changes_the_best_config_is(change):
    a, b = (tuning_key(p, "v6e", "decode") for p in (PROBLEM, replace(PROBLEM, **change)))
    assert a != b
    assert distance(a, b) > 0
    assert differences(a, b)


def test_new_tokens_of_a_decode_are_a_matter_of_decode_rounded_as_it_computes_them():
    keys = [
        [tuning_key(replace(PROBLEM, decode_query_size=size), "v6e", family) for size in (1, 3, 4)]
        for family in ("decode", "prefill", "mixed", "mla-mixed")
    ]
    (single, three, four), prefill, mixed, latent = keys
    assert three == four != single
    assert len(set(prefill)) == len(set(mixed)) == len(set(latent)) == 1
    assert set(four.to_dict()) - set(single.to_dict()) == {"decode_query_size"}
    assert "1 to 4 new tokens" in str(four)


def test_other_chips_families_and_dtypes_are_never_near():
    key = tuning_key(PROBLEM, "v6e", "decode")
    for other in (
        tuning_key(PROBLEM, "v5e", "decode"),
        tuning_key(PROBLEM, "v6e", "mixed"),
        tuning_key(replace(PROBLEM, kv_dtype="int8"), "v6e", "decode"),
        tuning_key(replace(PROBLEM, page_size=128, kv_layout=SEQ_ALONG_LANE), "v6e", "decode"),
    ):
        assert distance(key, other) is None


def test_a_window_is_near_to_none_as_it_reaches_the_context():
    key = tuning_key(PROBLEM, "v6e", "decode")
    windows = [
        tuning_key(replace(PROBLEM, sliding_window=w), "v6e", "decode") for w in (128, 32, 8)
    ]
    away = [distance(key, window) for window in windows]
    assert away == sorted(away)
    assert away[0] > 0


def test_a_chunk_is_near_to_a_window_of_half_of_it():
    chunk, half, whole = (
        tuning_key(replace(PROBLEM, **reach), "v6e", "decode")
        for reach in ({"attention_chunk_size": 64}, {"sliding_window": 32}, {})
    )
    assert 0 < distance(chunk, half) < distance(chunk, whole)


def test_keys_without_what_came_later_are_written_as_before():
    """Rows and their order stay what they were; a file may say the same in full."""
    plain = tuning_key(PROBLEM, "v6e", "decode")
    chunked = tuning_key(replace(PROBLEM, attention_chunk_size=64), "v6e", "decode")
    assert set(chunked.to_dict()) - set(plain.to_dict()) == {"attention_chunk_tokens"}
    along = tuning_key(replace(PROBLEM, page_size=128, kv_layout=SEQ_ALONG_LANE), "v6e", "decode")
    assert set(along.to_dict()) - set(plain.to_dict()) == {"kv_layout"}
    assert set(replace(PROBLEM, sm_scale=2.0).to_dict()).isdisjoint({"kv_layout"})
    row = make_row().to_dict()
    for key in (row["key"], {**row["key"], "attention_chunk_tokens": 0}):
        assert row_from_dict({**row, "key": key}, chip="v6e", family="decode").key == plain
    row = {**row, "key": chunked.to_dict()}
    assert row_from_dict(row, chip="v6e", family="decode").key == chunked
    row["key"]["attention_chunk_tokens"] = -1
    with pytest.raises(ValueError, match=r"key.attention_chunk_tokens=-1 is not in 0\.\."):
        row_from_dict(row, chip="v6e", family="decode")


def test_no_two_keys_read_alike():
    key = tuning_key(PROBLEM, "v6e", "decode")
    others = {str: "other", int: 4096, bool: None}
    texts = {str(key)}
    for field in fields(key):
        value = getattr(key, field.name)
        other = others[type(value)]
        changed = {field.name: not value if other is None else other}
        latent = {"rope_dim": 64} if field.name == "kv_packing" else {}  # there is none without
        texts.add(str(replace(key, **latent, **changed)))
    assert len(texts) == 1 + len(fields(key))
    assert str(key) == (
        "v6e decode: 8/2 heads of 128, bfloat16, page 16, 8 seqs, 32 tokens, context 256"
    )


@pytest.mark.parametrize("head_dim", [64, 80, 128, 192])
def test_a_key_keeps_what_a_layout_without_padding_stores(head_dim):
    problem = replace(
        PROBLEM, page_size=128, head_dim=head_dim, kv_dtype="float8_e4m3fn",
        kv_layout=SEQ_ALONG_LANE,
    )  # fmt: skip
    key = tuning_key(problem, "v6e", "decode")
    assert representative(key).kv_token_bytes == problem.kv_token_bytes
    assert tuning_key(representative(key), "v6e", "decode") == key
    assert "seq_along_lane" in str(key)
    row = {**make_row().to_dict(), "key": key.to_dict()}
    assert row_from_dict(row, chip="v6e", family="decode").key == key
    row["key"]["kv_layout"] = "sideways"
    with pytest.raises(ValueError, match="kv_layout"):
        row_from_dict(row, chip="v6e", family="decode")
