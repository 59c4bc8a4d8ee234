"""The flags of servers in YAML: every flag is read, and comes back as it was written."""

import json
import re
from pathlib import Path

import pytest
import yaml

from rpa_tune.errors import UsageError
from rpa_tune.models.server import FLAGS, Server
from rpa_tune.sweep.nodes import parse_yaml
from rpa_tune.sweep.plan import read_plan
from rpa_tune.sweep.plan_servers import CROSSED, read_engine, read_servers, why_not
from rpa_tune.sweep.study import build_studies

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


def test_lists_of_an_entry_are_crossed_the_first_slowest_and_only_what_can_be_is_kept() -> None:
    text = """
    - {tp: [8, 1], model: [llama3-8b, llama3-405b, phi-4], chip: [v6e, v7x], families: [decode]}
    - {model: llama3-8b, chip: v6e, tokens: [16, 32]}
    """
    servers = read_servers(parse_yaml(text, "fleet.yaml"))
    crossed = [(s.tp, s.model, s.chip) for s in servers if s.only_families == ("decode",)]
    # 405 GB over eight v6e of 34 GB have no room; ten KV heads are no two on each of eight devices.
    assert crossed == [
        (8, "llama3-8b", "v6e"), (8, "llama3-8b", "v7x"), (8, "llama3-405b", "v7x"),
        (1, "llama3-8b", "v6e"), (1, "llama3-8b", "v7x"),
        (1, "phi-4", "v6e"), (1, "phi-4", "v7x"),
    ]  # fmt: skip
    assert servers[-1].only_tokens == (16, 32)
    assert "405 GB" not in why_not(servers[0])
    too_large = Server(model="llama3-405b", chip="v6e", tp=8)
    assert why_not(too_large).startswith("llama3-405b needs 51 GB of each of 8 v6e")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{model: llama3-8b, chip: v6e, families: []}", "families is empty"),
        ("{model: llama3-8b, chip: v6e, families: [decoder]}", "unknown family 'decoder'"),
        ("{model: [llama3-405b], chip: v6e, tp: [1, 2]}", "none of these servers can be: llama3-4"),
        ("{model: [], chip: v6e}", "none of these servers can be: a list is empty"),
        ("{model: [llama3-8b, lama], chip: v6e}", "unknown model 'lama'"),
        ("{model: llama3-8b, chip: v6e, max_num_seqs: [8, 16]}", "max_num_seqs"),
    ],
)
def test_what_is_wrong_with_an_entry_of_lists_is_said_with_its_line(entry, said) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        read_servers(parse_yaml(f"- {entry}", "fleet.yaml"))
    assert caught.value.where.startswith("fleet.yaml:1")


def test_a_set_counts_in_a_shape_as_often_as_its_parts_launch_there(tmp_path) -> None:
    """And is served once for servers that differ in the model or the chip alone."""
    for name, lengths in (("a", [[1] * 9, [1, 40]]), ("b", [[1] * 9, [1] * 9, [1, 7]])):
        batches = [
            {"q_lens": q, "kv_lens": [50] * len(q), "num_decode": q.count(1),
             "weight": 1 / len(lengths)}
            for q in lengths
        ]  # fmt: skip
        data = {"schema": "rpa-workload/1", "name": name, "source": "made up", "batches": batches}
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    weights = {str(tmp_path / "a.json"): 1, str(tmp_path / "b.json"): 3}
    plan = f"""
    servers:
      - {{model: [llama3-8b, qwen3-8b], chip: [v6e, v7x], max_num_seqs: 16,
         max_num_batched_tokens: 64}}
    workload: {json.dumps(weights)}
    """
    studies = build_studies(read_plan(parse_yaml(plan, "p"), Path("p.yaml")))
    assert len(studies) == 2 * (1 + 3)  # decode, and mixed in three buckets, on two chips
    assert studies[0].name.endswith("llama3-8b/64 tokens/decode and v6e/qwen3-8b/64 tokens/decode")
    decode = studies[0].workload
    assert sum(wb.weight for wb in decode.batches if len(wb.batch.q_lens) == 9) == pytest.approx(
        (0.25 * 1 / 2 + 0.75 * 2 / 3) / 1
    )
    mixed = {s.problem.max_num_tokens: s.workload for s in studies if s.family.name == "mixed"}
    assert [max(wb.batch.q_lens) for wb in mixed[16].batches] == [7]
    assert [max(wb.batch.q_lens) for wb in mixed[64].batches] == [40]
