"""What the cache's padding costs, from its layout."""

import dataclasses

import pytest
from table_rows import PROBLEM

from rpa_kernels.layout import KV_DTYPES, SEQ_ALONG_LANE, SEQ_ALONG_LANE_DTYPES
from rpa_tune.models.padding import bytes_by_layout, padding_note, token_bytes, useful_token_bytes
from rpa_tune.tables.key import tuning_key


def problem(**fields):
    return dataclasses.replace(PROBLEM, **{"num_q_heads": 24, **fields})


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"num_kv_heads": 1, "kv_dtype": "float8_e4m3fn"},
         "padding: 256 of the 512 bytes of a token in the KV cache; "
         "float8_e4m3fn moves as many bytes as bfloat16 would; "
         "kv_layout seq_along_lane stores 256"),
        ({"num_kv_heads": 1, "kv_dtype": "int8"},
         "padding: 256 of the 512 bytes of a token in the KV cache; "
         "int8 moves as many bytes as bfloat16 would"),
        ({"num_kv_heads": 3, "kv_dtype": "float8_e5m2"},
         "padding: 256 of the 1,024 bytes of a token in the KV cache; "
         "kv_layout seq_along_lane stores 768"),
        ({"num_kv_heads": 1, "head_dim": 64},
         "padding: 256 of the 512 bytes of a token in the KV cache; "
         "bfloat16 moves as many bytes as float32 would; kv_layout seq_along_lane stores 256"),
        ({"num_kv_heads": 2, "head_dim": 80},
         "padding: 384 of the 1,024 bytes of a token in the KV cache; "
         "kv_layout seq_along_lane stores 640"),
        ({"num_kv_heads": 1, "kv_dtype": "float8_e4m3fn", "page_size": 128,
          "kv_layout": SEQ_ALONG_LANE}, ""),
        ({"num_kv_heads": 2, "kv_dtype": "float8_e4m3fn"}, ""),
        ({"num_kv_heads": 1}, ""),
    ],
)  # fmt: skip
def test_padding_is_worked_out_from_the_layout(fields, note):
    assert padding_note(problem(**fields)) == note


def test_it_is_what_a_problem_moves():
    """The bytes of the account and of the cache's shape, for every dtype and few heads."""
    for kv_dtype in KV_DTYPES:
        for heads in (1, 2, 3, 4):
            for head_dim in (64, 80, 128, 256):
                p = problem(num_kv_heads=heads, head_dim=head_dim, kv_dtype=kv_dtype)
                assert token_bytes(p) == p.kv_token_bytes
                assert useful_token_bytes(p) <= token_bytes(p)
                if kv_dtype in SEQ_ALONG_LANE_DTYPES:
                    p = dataclasses.replace(p, page_size=128, kv_layout=SEQ_ALONG_LANE)
                    assert bytes_by_layout(p)[SEQ_ALONG_LANE] == token_bytes(p) == p.kv_token_bytes
                    assert p.page_bytes == 128 * p.kv_token_bytes
                    assert useful_token_bytes(p) <= token_bytes(p)


def test_a_row_says_it_like_its_problem():
    p = problem(num_kv_heads=1, kv_dtype="float8_e4m3fn")
    assert padding_note(tuning_key(p, "v6e", "decode")) == padding_note(p)
