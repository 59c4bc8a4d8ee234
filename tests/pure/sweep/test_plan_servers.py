"""The flags of servers in YAML: every flag is read, and comes back as it was written."""

import pytest
import yaml

from rpa_tune.errors import UsageError
from rpa_tune.models.server import FLAGS, Server
from rpa_tune.sweep.nodes import parse_yaml
from rpa_tune.sweep.plan_servers import CROSSED, read_engine, read_servers

SERVER = Server(
    model="llama3-8b", chip="v6e", tp=2, dp=4, max_num_seqs=16, max_num_batched_tokens=64,
    max_model_len=4096, page_size=256, kv_dtype="float8_e4m3fn", kv_layout="seq_along_lane",
    num_speculative_tokens=3, decode_query_size=4, padding_gap=128, token_buckets=(24, 48),
    min_token_bucket=8, bucket_seqs=True, uses_prefill=True,
)  # fmt: skip
SGLANG = Server(model="llama3-8b", chip="v6e", engine="sglang-jax", page_size=128)


def written(server: Server) -> dict:
    return {n: list(v) if isinstance(v, tuple) else v for n, v in server.flags.items()}


def test_what_a_server_says_of_itself_is_that_server() -> None:
    assert set(SERVER.flags) | set(SGLANG.flags) == set(FLAGS)
    text = yaml.safe_dump([written(SERVER), written(SGLANG)])
    assert read_servers(parse_yaml(text, "fleet.yaml")) == (SERVER, SGLANG)


def test_a_server_beside_lists_says_what_those_do_not() -> None:
    flags = {name: value for name, value in written(SERVER).items() if name not in CROSSED}
    engine = read_engine(parse_yaml(yaml.safe_dump(flags), "plan.yaml"))
    assert (engine.dp, engine.padding_gap, engine.token_buckets) == (4, 128, (24, 48))
    with pytest.raises(UsageError, match="unknown key 'tp' in server"):
        read_engine(parse_yaml(yaml.safe_dump({**flags, "tp": 2}), "plan.yaml"))
