"""Limits that a server leaves to vLLM, or that it does not start with: asked of vLLM itself."""

from types import SimpleNamespace as Record

import pytest
from vllm.config.scheduler import SchedulerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from rpa_tune.errors import UsageError
from rpa_tune.models.server import Server

LENGTHS = [16, 1024, 8192, 131072]
TOO_FEW = {"max_num_seqs": 512, "max_num_batched_tokens": 64}
LIMITS = [
    limits
    for seqs in (None, 2, 64, 512)
    for tokens in (None, 64, 2048, 20000)
    if (limits := {"max_num_seqs": seqs, "max_num_batched_tokens": tokens}) != TOO_FEW
]


def limits_of_vllm(given, max_model_len) -> dict[str, int]:
    args = EngineArgs(model="none", enable_chunked_prefill=True, **given)
    args._set_default_max_num_seqs_and_batched_tokens_args(
        UsageContext.LLM_CLASS,
        Record(max_model_len=max_model_len, is_multimodal_model=False),
        Record(use_batched_dp_moe=False),
    )
    limits = {name: getattr(args, name) for name in given}
    SchedulerConfig(max_model_len=max_model_len, is_encoder_decoder=False, **limits)
    return limits


def server_of(given, max_model_len) -> Server:
    return Server(model="llama3-8b", chip="v6e", max_model_len=max_model_len, **given)


@pytest.mark.parametrize("max_model_len", LENGTHS)
@pytest.mark.parametrize("given", LIMITS, ids=str)
def test_limits_are_those_of_vllm(given, max_model_len):
    server = server_of(given, max_model_len)
    assert limits_of_vllm(given, max_model_len) == {name: getattr(server, name) for name in given}


@pytest.mark.parametrize("max_model_len", LENGTHS)
def test_fewer_tokens_than_sequences_are_refused_by_both(max_model_len):
    with pytest.raises(ValueError, match="must be greater than or equal to max_num_seqs"):
        limits_of_vllm(TOO_FEW, max_model_len)
    with pytest.raises(UsageError, match="must be at least max_num_seqs"):
        server_of(TOO_FEW, max_model_len)
