"""The shapes that an engine compiles its step for: the one rule of its buckets. No jax.

Sizes are those of one rank: under data parallelism each rank has its own tokens, sequences and
pages, and attention sees only them.

tpu-inference 0.32.0: `TPUModelRunner._init_inputs` (runner/tpu_runner.py) pads the tokens of all
ranks with `build_token_paddings` (runner/utils.py), from `MIN_TOKEN_BUCKET` (envs.py), or one word
of KV for each rank if that is more, up to the budget: in powers of two, or by
`VLLM_TPU_BUCKET_PADDING_GAP` beyond it, with `compilation_sizes` added. It makes the per-sequence
arrays of the attention call as long as the most sequences of all ranks, at least `MIN_NUM_SEQS`,
whatever a step holds. Tokens of drafts change no bucket: they count as new tokens.

sglang-jax 0.0.2: `ModelWorker.normalize_token_paddings` and `__init__` (managers/tp_worker.py). A
launch of prompts is padded to one of the token buckets and to the most sequences; a decode launch
has a token a sequence, padded to one of the sequence buckets, from 1 on. Its main branch does the
same (`CompilationManager` in model_executor/compilation_manager.py) without data parallelism and
fused experts, which it adds.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rpa_kernels import layout
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import MAX_DECODE_QUERY, Problem
from rpa_kernels.slots import SLOTS, slot_of
from rpa_tune.errors import UsageError
from rpa_tune.models.flags import take_flags

TPU_INFERENCE, SGLANG_JAX = "tpu-inference", "sglang-jax"
ENGINES = (TPU_INFERENCE, SGLANG_JAX)
# Tokens that lie in one tile of a latent cache. Source: the default of `MLA_KV_PACKING_SIZE` of
# tpu-inference 0.32.0 (envs.py), which runner/kv_cache.py hands to the kernel's shape.
_LATENT_PACKING = 32
LEAST_SEQS = 8
LEAST_TOKENS = 16
# sglang-jax 0.0.2, srt/utils/common_utils.py and `ServerArgs.max_prefill_tokens`.
_SGLANG_TOKENS = tuple(1 << i for i in range(6, 14))
_SGLANG_SEQS = tuple(1 << i for i in range(9))
_SGLANG_MOST_TOKENS = 16384
# The model's own dtype, or bfloat16. Source: sglang-jax 0.0.2, `ModelRunner.init_memory_pool`; its
# main branch (cddbf6f), `_init_kv_cache_dtype`.
_SGLANG_CACHES = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape of a step on one rank, and what is padded to it.

    Attributes:
      num_tokens: Rows of the queries.
      num_seqs: Length of the per-sequence arrays.
      above_tokens: Steps here have more tokens than this, and at most `num_tokens`.
      above_seqs: Steps here have more sequences than this, and at most `num_seqs`.
      families: Whose sequences steps here can have.
    """

    num_tokens: int
    num_seqs: int
    above_tokens: int = 0
    above_seqs: int = 0
    families: tuple[str, ...] = SLOTS

    def holds(self, num_tokens: int, num_seqs: int) -> bool:
        """Whether a step of so many tokens and sequences is padded to this shape."""
        return (
            self.above_tokens < num_tokens <= self.num_tokens
            and self.above_seqs < num_seqs <= self.num_seqs
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One shape of the call, and the steps that are padded to it.

    Attributes:
      problem: What is compiled.
      above_tokens: Steps here have more tokens than this, and at most the problem's.
      above_seqs: Steps here have more sequences than this, and at most the problem's.
      families: Whose sequences steps here can have.
    """

    problem: Problem
    above_tokens: int
    above_seqs: int
    families: tuple[str, ...] = SLOTS

    def can_meet(self, families: tuple[str, ...]) -> bool:
        """Whether a step with sequences of exactly these families can land here.

        A decode sequence has one token or up to `decode_query_size`, any other at least one; of
        each family there is one.
        """
        most_tokens = self.problem.max_num_tokens
        most_seqs = min(self.problem.max_num_seqs, most_tokens)
        least_seqs = max(self.above_seqs + 1, len(families))
        slots = tuple(slot_of(family) for family in families)
        if not slots or least_seqs > most_seqs or not set(slots) <= set(self.families):
            return False
        # Sequences that are all decode have a token each, or a few.
        most = most_seqs * self.problem.decode_query_size
        return slots != ("decode",) or self.above_tokens + 1 <= most


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What decides the shapes of a serving engine, under the names of its options.

    Attributes:
      max_num_seqs: Maximum number of sequences in a step of one rank.
      max_num_batched_tokens: Maximum number of new tokens in a step of one rank.
      max_model_len: Longest context, tokens. It decides no shape.
      engine: Whose rules; one of `ENGINES`.
      dp: Ranks that share the sequences, attention data parallelism included.
      kv_dtype: Dtype name of the KV cache.
      num_speculative_tokens: Draft tokens verified with every decode. They decide no shape.
      decode_query_size: Most new tokens of a sequence in the decode slot, as the argument of the
        attention call: 1 + drafts for a server that passes it. tpu-inference 0.32.0 does not: its
        verified sequences are served by the mixed family. It decides no shape.
      padding_gap: tpu-inference's `VLLM_TPU_BUCKET_PADDING_GAP`: tokens between buckets; 0 for
        powers of two.
      token_buckets: tpu-inference's `compilation_sizes`, tokens of all ranks, in addition to
        those that the rule gives; sglang-jax's `precompile_token_paddings`, in their place.
      min_token_bucket: tpu-inference's `MIN_TOKEN_BUCKET`.
      bucket_seqs: Whether the per-sequence arrays are padded to the next power of two of
        sequences; else always to the most. tpu-inference 0.32.0 does not: its
        `ATTN_BUCKETIZED_NUM_REQS` is a static argument for layers of other kinds.
      uses_prefill: Whether sequences are ever put in the prefill slot of the distribution.
        Source: tpu-inference 0.32.0, runner/persistent_batch_manager.py puts none there;
        sglang-jax 0.0.2 does, but names no chunk size, so that the mixed family serves them.
      only_tokens: Shapes of these tokens alone (`tokens` in a plan); all if empty.
      only_families: Rows of these kernel families alone (`families` of a server in a plan); all if
        empty. It decides no shape.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int = 8192
    engine: str = TPU_INFERENCE
    dp: int = 1
    kv_dtype: str = "bfloat16"
    num_speculative_tokens: int = 0
    decode_query_size: int = 1
    padding_gap: int = 0
    token_buckets: tuple[int, ...] = ()
    min_token_bucket: int = LEAST_TOKENS
    bucket_seqs: bool = False
    uses_prefill: bool = False
    only_tokens: tuple[int, ...] = ()
    only_families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what the engine would not start with.

        Raises:
          UsageError: Names the option, its value and the rule.
        """
        take_flags(self, {"engine": ENGINES})
        self._check()

    def _check(self) -> None:
        """Refuses flags that do not go together, each of them read already.

        Raises:
          UsageError: As `__post_init__`.
        """
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "dp",
                     "min_token_bucket"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("padding_gap", "num_speculative_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")
        if not 1 <= self.decode_query_size <= MAX_DECODE_QUERY:
            raise UsageError(
                f"decode_query_size={self.decode_query_size} must be 1 to {MAX_DECODE_QUERY}",
                hint="longer verifications are served by the mixed family",
            )
        if self.min_token_bucket & (self.min_token_bucket - 1):
            raise UsageError(f"min_token_bucket={self.min_token_bucket} must be a power of two")
        if any(tokens < 1 for tokens in self.token_buckets):
            raise UsageError(f"token_buckets={self.token_buckets} must be at least 1 each")
        if self.engine == SGLANG_JAX:
            self._check_sglang()
        elif self.max_num_batched_tokens < self.max_num_seqs:
            # Source: vLLM's `SchedulerConfig.verify_max_model_len` (config/scheduler.py).
            raise UsageError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs}: vLLM does not start otherwise",
            )
        self._check_ranks()
        if not self.only_tokens:
            return
        compiled = sorted({shape.num_tokens for shape in self.all_shapes()})
        for tokens in self.only_tokens:
            if tokens not in compiled:
                raise UsageError(
                    f"tokens={tokens} is no shape of this server",
                    hint=f"its shapes have {', '.join(map(str, compiled))} tokens",
                )

    def _check_sglang(self) -> None:
        """Refuses options that sglang-jax does not have, or does not take.

        Raises:
          UsageError: Names them.
        """
        theirs = {"dp": 1, "padding_gap": 0, "min_token_bucket": LEAST_TOKENS, "bucket_seqs": False}
        for name, none in theirs.items():
            if getattr(self, name) != none:
                raise UsageError(
                    f"{name}={getattr(self, name)} is an option of {TPU_INFERENCE}: "
                    f"{SGLANG_JAX} 0.0.2 has none"
                )
        if self.kv_dtype not in _SGLANG_CACHES:
            raise UsageError(
                f"kv_dtype={self.kv_dtype}: {SGLANG_JAX} has no such cache, and does not start",
                hint=f"{' or '.join(_SGLANG_CACHES)}",
            )

    def _check_ranks(self) -> None:
        """Refuses buckets that the ranks cannot share: jax shards equal parts only.

        Raises:
          UsageError: Names one.
        """
        ranks = self.ranks
        if ranks == 1:
            return
        most_seqs = max(ranks * self.max_num_seqs, LEAST_SEQS)
        uneven = [n for n in self._tokens_of_all_ranks if n % ranks]
        if uneven or most_seqs % ranks:
            what = f"a bucket of {uneven[0]} tokens" if uneven else f"{most_seqs} sequences"
            raise UsageError(
                f"{self._ranks_text} does not divide {what}, which {self.engine} shards over the "
                "ranks",
                hint="use a power of two, and multiples of it for gaps and token buckets",
            )

    def pages_per_seq(self, page_size: int) -> int:
        """Pages of a sequence at its longest; `max_num_seqs` times that fill the cache."""
        return cdiv(self.max_model_len, page_size)

    @property
    def ranks(self) -> int:
        """Ranks that share the sequences."""
        return self.dp

    @property
    def _ranks_text(self) -> str:
        return f"dp={self.dp}" if self.ranks == self.dp else f"ranks={self.ranks} (dp x tp)"

    @property
    def families(self) -> tuple[str, ...]:
        """Slots that a step can have sequences in, which are names of families without latents."""
        return tuple(slot for slot in SLOTS if slot != "prefill" or self.uses_prefill)

    def shapes(self) -> Iterator[Shape]:
        """Every shape that a rank compiles, smallest first; those of `only_tokens` if there are."""
        for shape in self.all_shapes():
            if not self.only_tokens or shape.num_tokens in self.only_tokens:
                yield shape

    def all_shapes(self) -> Iterator[Shape]:
        """Every shape that a rank compiles, smallest first, whatever of it is tuned."""
        return self._sglang_shapes() if self.engine == SGLANG_JAX else self._tpu_inference_shapes()

    def buckets(self, problem: Problem) -> Iterator[Bucket]:
        """Every shape of a call that is compiled, smallest first.

        Args:
          problem: Heads, dtypes, pages and features; its most tokens and sequences play no part.
        """
        is_alone = self.ranks == 1
        for shape in self.shapes():
            # All ranks are padded to the bucket of the fullest; another may hold any less.
            yield Bucket(
                problem=replace(
                    problem, max_num_tokens=shape.num_tokens, max_num_seqs=shape.num_seqs
                ),
                above_tokens=shape.above_tokens if is_alone else 0,
                above_seqs=shape.above_seqs if is_alone else 0,
                families=shape.families,
            )

    @property
    def _tokens_of_all_ranks(self) -> list[int]:
        """Token buckets as tpu-inference makes them, over all ranks; sglang-jax has one rank."""
        if self.engine == SGLANG_JAX:
            return self._sglang_tokens
        ranks = self.ranks
        least = max(
            self.min_token_bucket, layout.next_power_of_2(ranks * layout.packing(self.kv_dtype))
        )
        most = self.max_num_batched_tokens * ranks
        budget = layout.align(most, least)
        sizes = {n for n in _grown(least, most, self.padding_gap) if n <= budget} | {budget}
        return sorted(sizes.union(self.token_buckets))

    def _tpu_inference_shapes(self) -> Iterator[Shape]:
        ranks, families = self.ranks, self.families
        tokens = [n // ranks for n in self._tokens_of_all_ranks]
        most_seqs = max(ranks * self.max_num_seqs, LEAST_SEQS) // ranks
        seqs = _grown(LEAST_SEQS, most_seqs, 0) if self.bucket_seqs else [most_seqs]
        seqs = sorted({min(n, most_seqs) for n in seqs})
        for above_seqs, num_seqs in itertools.pairwise([0, *seqs]):
            for above_tokens, num_tokens in itertools.pairwise([0, *tokens]):
                if num_tokens > above_seqs:
                    yield Shape(
                        num_tokens=num_tokens,
                        num_seqs=num_seqs,
                        above_tokens=above_tokens,
                        above_seqs=above_seqs,
                        families=families,
                    )

    @property
    def _sglang_tokens(self) -> list[int]:
        """Token buckets of launches of prompts."""
        most = min(self.max_num_batched_tokens, _SGLANG_MOST_TOKENS)
        most_seqs = min(self.max_num_seqs, most)
        known = self.token_buckets or _SGLANG_TOKENS
        return sorted({*(n for n in known if most_seqs <= n <= most), most})

    def _sglang_shapes(self) -> Iterator[Shape]:
        tokens = self._sglang_tokens
        most_seqs = min(self.max_num_seqs, tokens[-1])
        seqs = sorted({*(n for n in _SGLANG_SEQS if n <= most_seqs), most_seqs})
        for above, num in itertools.pairwise([0, *seqs]):
            yield Shape(
                num_tokens=num, num_seqs=num, above_tokens=above, above_seqs=above,
                families=("decode",),
            )  # fmt: skip
        for above, num in itertools.pairwise([0, *tokens]):
            yield Shape(
                num_tokens=num, num_seqs=most_seqs, above_tokens=above, families=self.families
            )


def latent_fields(engine: str, kv_dtype: str) -> dict[str, Any]:
    """Fields of `Problem` that an engine decides for layers with latents.

    Source:
      tpu-inference 0.32.0: as above, and `PallasMLAttentionBackendImpl.forward`
      (layers/vllm/backends/flash_attn_mla.py), which rounds queries to the dtype of a quantised
      cache unless `DISABLE_MLA_Q_ACTIVATION_QUANTIZATION` is set.
    """
    if engine != TPU_INFERENCE:
        return {}
    quantised = {"q_dtype": kv_dtype} if kv_dtype.startswith("float8") else {}
    return {"kv_packing": _LATENT_PACKING, **quantised}


def shape_of(num_tokens: int, num_seqs: int) -> Shape:
    """The shape of a server whose largest step has so many tokens and sequences.

    Its limits are not known: both are taken for powers of two.
    """
    return Shape(
        num_tokens=layout.next_power_of_2(max(num_tokens, LEAST_TOKENS)),
        num_seqs=layout.next_power_of_2(max(num_seqs, LEAST_SEQS)),
    )


def _grown(least: int, most: int, gap: int) -> list[int]:
    """Sizes from `least`, a power of two, up to the first that holds `most`.

    They double; with a gap they double up to it, and are so far apart beyond.
    """
    sizes = [least]
    if gap == 0:
        while sizes[-1] < most:
            sizes.append(2 * sizes[-1])
        return sizes
    sizes = []
    size = least
    while size <= gap:
        sizes.append(size)
        size *= 2
    size //= 2
    while size < most:
        size += gap
        sizes.append(size)
    return sizes
