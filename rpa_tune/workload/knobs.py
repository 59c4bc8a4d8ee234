"""The engine's knobs, under the names that serving engines give them, and its clock.

`EngineKnobs` uses vLLM's names; `SGLANG_NAMES` lists what SGLang calls the same thing.
"""

import enum
from dataclasses import dataclass, field

from rpa_tune.workload.pages import PageReuse


class Scheduler(enum.StrEnum):
    """Whose scheduling policy the engine follows."""

    VLLM = "vllm"
    SGLANG = "sglang"


class KvRole(enum.StrEnum):
    """Which half of a disaggregated deployment the engine is (vLLM's `kv_role`)."""

    BOTH = "kv_both"
    PREFILL = "kv_producer"
    DECODE = "kv_consumer"


# SGLang's name -> ours; `max_total_tokens`, in tokens, becomes `num_gpu_blocks` in `spec.py`.
# Source: sgl_jax/srt/server_args.py of sglang-jax.
SGLANG_NAMES = {
    "max_running_requests": "max_num_seqs",
    "chunked_prefill_size": "max_num_batched_tokens",
    "context_length": "max_model_len",
    "page_size": "block_size",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """How long an engine step takes; decides how many requests have arrived by the next one.

    A step costs the larger of `weights_us` and `us_per_token * tokens`, plus
    `us_per_context_token * (sum of kv_lens)`. The defaults are Llama-3-8B in bfloat16 on one v6e
    at its nominal rates, so they are a lower bound: 16 GB of weights at 1.64 TB/s, 16 GFLOP a
    token at 920 TFLOP/s, 128 KiB of K and V a context token at 1.64 TB/s.

    Source: jax 0.10.2 `pltpu.TpuInfo` for the rates; the rest is arithmetic on the model's shape.
    Confidence: guess. It moves load, never the legality of a step.
    """

    weights_us: float = 9800.0
    us_per_token: float = 17.4
    us_per_context_token: float = 0.08

    def __post_init__(self) -> None:
        """Refuses a clock that stands still or runs backwards."""
        if self.weights_us <= 0 or min(self.us_per_token, self.us_per_context_token) < 0:
            raise ValueError(
                f"weights_us={self.weights_us} must be above 0, "
                f"us_per_token={self.us_per_token} and "
                f"us_per_context_token={self.us_per_context_token} at least 0"
            )

    def step_us(self, *, num_tokens: int, context_tokens: int) -> float:
        """Microseconds of a step with `num_tokens` new tokens over `context_tokens` in all."""
        compute_us = max(self.weights_us, self.us_per_token * num_tokens)
        return compute_us + self.us_per_context_token * context_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKnobs:
    """What a person sets when starting a serving engine.

    Attributes:
      block_size: Tokens in a KV cache page.
      scheduler: `vllm`: running sequences first, prompts fill the rest of the token budget.
        `sglang`: prompts first in launches of their own, decode launches otherwise.
      max_num_seqs: Sequences that run at once.
      max_num_batched_tokens: New tokens in one launch.
      max_model_len: Prompt plus output of one sequence, at most.
      num_gpu_blocks: Pages of the KV cache, one of them the null page; None for as many as
        `max_num_seqs` sequences of `max_model_len` could ever need, so that nothing is preempted.
      enable_chunked_prefill: Whether a prompt may be split over launches.
      long_prefill_token_threshold: `vllm` only: new tokens of one prompt in one launch, at most; 0
        for no cap.
      enable_prefix_caching: Whether pages with known text are reused.
      page_reuse: Where freed pages go; None for what the scheduler's engine does: `uncached_first`
        for `vllm`, `lowest_first` for `sglang`. `least_recent` is vLLM before it told pages with
        known text from others.
      enable_mixed_chunk: `sglang` only: whether decodes join prompt launches.
      num_speculative_tokens: Draft tokens verified with every decode; q is one more.
      acceptance_rate: Chance that a draft token is accepted, given that those before it were.
      kv_role: Both halves, prefill only, or decode only.
      step_time: The clock.
    """

    block_size: int
    scheduler: Scheduler = Scheduler.VLLM
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 32768
    num_gpu_blocks: int | None = None
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    enable_prefix_caching: bool = True
    page_reuse: PageReuse | None = None
    enable_mixed_chunk: bool = False
    num_speculative_tokens: int = 0
    acceptance_rate: float = 0.7
    kv_role: KvRole = KvRole.BOTH
    step_time: StepTime = field(default_factory=StepTime)

    def __post_init__(self) -> None:
        """Refuses knobs with which an engine would not start.

        Raises:
          ValueError: With the knob, its value and the rule.
        """
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len={self.max_model_len} must be at least 2")
        if self.long_prefill_token_threshold < 0:
            raise ValueError(
                f"long_prefill_token_threshold={self.long_prefill_token_threshold} "
                "must be at least 0"
            )
        if self.scheduler is Scheduler.SGLANG and self.long_prefill_token_threshold:
            raise ValueError("long_prefill_token_threshold is a knob of scheduler=vllm alone")
        if self.scheduler is Scheduler.VLLM and self.enable_mixed_chunk:
            raise ValueError("enable_mixed_chunk is a knob of scheduler=sglang alone")
        if not 0 <= self.num_speculative_tokens <= 15:
            raise ValueError(
                f"num_speculative_tokens={self.num_speculative_tokens} must be 0 to 15"
            )
        if not 0.0 <= self.acceptance_rate <= 1.0:
            raise ValueError(f"acceptance_rate={self.acceptance_rate} must be 0 to 1")
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_model_len={self.max_model_len} without chunked prefill"
            )
        # vLLM cuts drafts to the token budget; SGLang's decode launches know no budget.
        drafts = self.num_speculative_tokens if self.scheduler is Scheduler.SGLANG else 0
        if self.max_num_batched_tokens < self.max_num_seqs * (1 + drafts):
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs} times {1 + drafts} tokens a decode"
            )
        if self.num_pages - 1 < self.pages_of(self.max_model_len):
            raise ValueError(
                f"num_gpu_blocks={self.num_gpu_blocks} must exceed the "
                f"{self.pages_of(self.max_model_len)} pages of one sequence of "
                f"max_model_len={self.max_model_len}"
            )

    @property
    def reuse(self) -> PageReuse:
        """Where freed pages go."""
        if self.page_reuse is not None:
            return self.page_reuse
        if self.scheduler is Scheduler.SGLANG:
            return PageReuse.LOWEST_FIRST
        # Without a prefix cache vLLM appends all pages, as it always did.
        cached = self.enable_prefix_caching
        return PageReuse.UNCACHED_FIRST if cached else PageReuse.LEAST_RECENT

    @property
    def num_pages(self) -> int:
        """Pages of the KV cache, the null page included."""
        if self.num_gpu_blocks is not None:
            return self.num_gpu_blocks
        return 1 + self.max_num_seqs * self.pages_of(self.max_model_len)

    def pages_of(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.block_size)
