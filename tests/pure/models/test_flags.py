"""Flags of a server in Python are what options and plans take, or one clear error."""

import json
from pathlib import Path

import numpy as np
import pytest

from rpa_tune.errors import UsageError
from rpa_tune.models.flags import read_flag
from rpa_tune.models.server import Server, as_server

SMALL = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 8, "max_num_batched_tokens": 64}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"chip": "TPU v6e"}, {"chip": "v6e"}),
        ({"model": "Qwen/Qwen3-32B"}, {"model": "qwen3-32b"}),
        ({"kv_dtype": "fp8"}, {"kv_dtype": "float8_e4m3fn"}),
        ({"kv_dtype": np.dtype("float32")}, {"kv_dtype": "float32"}),
        ({"engine": "TPU_inference"}, {"engine": "tpu-inference"}),
        ({"token_buckets": [24, np.int64(48)]}, {"token_buckets": (24, 48)}),
        ({"tp": np.int32(2)}, {"tp": 2}),
        ({"page_size": None, "max_num_batched_tokens": None},
         {"page_size": 0, "max_num_batched_tokens": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_a_flag_is_understood_however_it_is_spelt(given, meant) -> None:
    server = Server(**{**SMALL, **given})
    assert server == Server(**{**SMALL, **meant})
    assert hash(server) == hash(Server(**{**SMALL, **meant}))


def test_a_flag_is_understood_by_itself() -> None:
    assert read_flag("kv_dtype", "BF16") == "bfloat16"
    assert read_flag("page_size", None) == 0
    assert read_flag("kv_layout", "seq-along-lane") == "seq_along_lane"


def test_a_path_is_a_model(tmp_path) -> None:
    file = tmp_path / "config.json"
    config = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2}
    file.write_text(json.dumps(config | {"head_dim": 128, "num_hidden_layers": 2}))
    server = Server(**SMALL | {"model": file})
    assert server == Server(**SMALL | {"model": str(file)})
    assert server.layers()[0].problem.num_q_heads == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": None}, "model: NoneType given, where a name or a path"),
        ({"model": {"num_attention_heads": 8}}, "model: dict given"),
        ({"chip": None}, "unknown chip None"),
        ({"chip": ["v6e"]}, "unknown chip"),
        ({"tp": "2"}, "tp='2' must be an integer of at least 1"),
        ({"tp": 2.0}, "tp=2.0 must be an integer"),
        ({"dp": True}, "dp=True must be an integer"),
        ({"max_model_len": None}, "max_model_len=None must be an integer"),
        ({"kv_dtype": "fp6"}, "kv_dtype='fp6' is not one of float32, bfloat16"),
        ({"kv_dtype": None}, "kv_dtype=None is not one of"),
        ({"kv_layout": "rows"}, "kv_layout='rows' is not one of"),
        ({"engine": None}, "engine=None is not one of tpu-inference, sglang-jax"),
        ({"token_buckets": "24,48"}, "token_buckets='24,48' must be a list"),
        ({"token_buckets": 24}, "token_buckets=24 must be a list"),
        ({"token_buckets": ["24"]}, "token_buckets='24' must be an integer"),
        ({"bucket_seqs": 1}, "bucket_seqs=1 must be True or False"),
    ],
    ids=str,
)
def test_what_no_flag_can_be_is_one_error(flags, message) -> None:
    with pytest.raises(UsageError) as caught:
        Server(**{**SMALL, **flags})
    assert message in str(caught.value)


def test_a_mapping_of_flags_is_a_server() -> None:
    assert as_server({**SMALL, "tokens": [32]}) == Server(**SMALL, only_tokens=(32,))
    for given, message in (
        ({**SMALL, "max_num_seq": 8}, "did you mean max_num_seqs?"),
        ({"model": "llama3-8b"}, "missing chip in a server"),
        (Path("fleet.yaml"), "got PosixPath"),
        ("llama3-8b", "got str"),
    ):
        with pytest.raises(UsageError) as caught:
            as_server(given)
        assert message in str(caught.value)
