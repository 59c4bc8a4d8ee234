"""How much an engine runs at once where it is not told, and at most whatever it is told. No jax."""

from rpa_kernels.ints import cdiv
from rpa_tune.errors import UsageError
from rpa_tune.models.buckets import SGLANG_JAX, TPU_INFERENCE

# New tokens of a step where the flag is left out. Source: vLLM's `EngineArgs.get_batch_defaults`
# for `LLM` (2,048 for `vllm serve`; of a TPU it learns no memory size, so both are those of a small
# device, as are 256 sequences); sglang-jax 0.0.2, `ServerArgs.__post_init__`.
DEFAULT_TOKENS = {TPU_INFERENCE: 8192, SGLANG_JAX: 4096}
DEFAULT_SEQS = 256
# Half of SMEM for the page table, as both engines reckon. Source: `own_page_size` (server.py) for
# tpu-inference; `limits_of_sglang_jax`.
TABLE_ENTRIES = 1024 * 1024 // 2 // 4
# The least pool of requests that sglang-jax makes where it is not told. Source: sglang-jax 0.0.2,
# `ModelRunner.init_memory_pool`: 2,048 to 4,096 by the memory that is free, and one for padding.
_LEAST_POOL = 2049


def limits_of_vllm(
    max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
) -> tuple[int, int]:
    """Most sequences and new tokens of a step under tpu-inference; 0 stands for a flag left out.

    Source:
      vLLM as tpu-inference 0.32.0 has it, `_set_default_max_num_seqs_and_batched_tokens_args`
      (engine/arg_utils.py).
    """
    tokens, seqs = max_num_batched_tokens, max_num_seqs
    if not tokens:
        tokens = min(DEFAULT_TOKENS[TPU_INFERENCE], (seqs or DEFAULT_SEQS) * max_model_len)
    if not seqs:
        seqs = min(DEFAULT_SEQS, tokens)
    return seqs, tokens


def limits_of_sglang_jax(
    max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, page_size: int
) -> tuple[int, int]:
    """The same under sglang-jax, which runs fewer sequences than it is told where pages are many.

    Raises:
      UsageError: No sequence has room for its pages, or the default depends on free memory.

    Source:
      sglang-jax 0.0.2: `ModelWorker.__init__` (managers/tp_worker.py),
      `FlashAttentionBackend.get_max_running_reqests` (layers/attention/flashattention_backend.py).
    """
    tokens = max_num_batched_tokens or DEFAULT_TOKENS[SGLANG_JAX]
    if page_size < 1 or max_model_len < 1:
        return max_num_seqs, tokens  # said elsewhere
    most = TABLE_ENTRIES // cdiv(max_model_len, page_size)
    if not most:
        raise UsageError(
            f"max_model_len={max_model_len} has more pages of {page_size} tokens than "
            f"{TABLE_ENTRIES:,}: {SGLANG_JAX} does not start",
            hint="larger pages, or shorter contexts",
        )
    if not max_num_seqs and most > _LEAST_POOL:
        raise UsageError(
            f"how many sequences {SGLANG_JAX} runs depends on the memory that it finds free: "
            f"{_LEAST_POOL:,} to {min(most, 4097):,} here",
            hint="start it with --max-running-requests 256, and give --max-num-seqs 256 here",
        )
    return min(max_num_seqs or most, most), tokens
