"""What a check runs: small cases that must be right, and ten kernels whose times tell much. No jax.

Each kernel leans on another parameter of the machine model, so that together they tell what is
wrong with it (docs/tpu-check.md has the table). Configs are the families' own choice for the chip,
but for one kernel. In a rehearsal everything is as small as it can be: what runs there is a CPU.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_kernels.slots import FAMILIES, SLOTS, families_of
from rpa_tune.candidate import Candidate
from rpa_tune.evaluate.interpreted import resized, stand_in
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.workload.workload import WeightedBatch, Workload

_LEAST_BLOCK_TOKENS = 128  # the smallest KV block that every family takes
# For which a family makes its own choice where correctness is asked for.
_NOMINAL_CONTEXT_TOKENS, _NOMINAL_TOKENS = 4096, 1024
_FEW_TOKENS = 16
# Heads of one device, as of Llama-3-8B; sizes follow from the batches.
_PROBLEM = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=16, max_num_seqs=8,
    pages_per_seq=8, num_pages=64, sm_scale=128**-0.5,
)  # fmt: skip
# What each family that serves it must get right, by name.
_FEATURES = {
    "bfloat16, pages of 128": _PROBLEM,
    "float8 cache, pages of 32": replace(
        _PROBLEM, page_size=32, kv_dtype="float8_e4m3fn", k_scale=0.5, v_scale=0.25
    ),
    "heads of 256, soft cap, one KV head": replace(
        _PROBLEM, num_q_heads=8, num_kv_heads=1, head_dim=256, page_size=16, soft_cap=30.0,
        sm_scale=0.0625,
    ),
    "heads of 64, sinks, window": replace(
        _PROBLEM, num_q_heads=64, head_dim=64, page_size=64, has_sinks=True, sliding_window=96,
        sm_scale=0.125,
    ),
    "float32": replace(
        _PROBLEM, num_q_heads=8, num_kv_heads=2, page_size=64, q_dtype="float32",
        kv_dtype="float32",
    ),
    "latents": replace(
        _PROBLEM, num_q_heads=16, num_kv_heads=1, head_dim=512, rope_dim=64, page_size=64
    ),
    "latents of float8 in rows of 32, 4 new tokens": replace(
        _PROBLEM, num_q_heads=64, num_kv_heads=1, head_dim=512, rope_dim=64, page_size=256,
        kv_packing=32, q_dtype="float8_e4m3fn", kv_dtype="float8_e4m3fn", q_scale=0.5, k_scale=0.5,
        v_scale=0.25, decode_query_size=4,
    ),
}  # fmt: skip
# (family, feature) of a rehearsal: one of each slot, and latents.
_REHEARSED = (*zip(SLOTS, _FEATURES, strict=False), ("mla-decode", "latents"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A candidate with what it is run on.

    Attributes:
      name: For people; unique in its step.
      candidate: Family, problem, config, chip.
      workload: Batches whose weights play no part.
    """

    name: str
    candidate: Candidate
    workload: Workload

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The launches."""
        return tuple(weighted.batch for weighted in self.workload.batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kernel:
    """One of the ten: its problem's sizes follow from its batch.

    Attributes:
      tells: What of the machine model its time leans on.
      problem: Heads, dtypes, page size.
      q_lens: New tokens per sequence.
      kv_lens: Context per sequence.
      family: Kernel family.
      config: Fields that differ from the family's own choice.
    """

    tells: str
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    problem: Problem = _PROBLEM
    family: str = "decode"
    config: Mapping[str, int] = field(default_factory=dict)


def _decode(tells: str, num_seqs: int, context: int, **changes: object) -> _Kernel:
    return _Kernel(
        tells=tells,
        q_lens=(1,) * num_seqs,
        kv_lens=(context,) * num_seqs,
        problem=replace(_PROBLEM, **changes),  # type: ignore[arg-type]
    )


_KERNELS = {
    "decode, one short sequence": _decode("launch, first copies", 1, 128),
    "decode, pages of 16, one KV head": _decode(
        "fixed time of a copy", 64, 2048, num_q_heads=8, num_kv_heads=1, page_size=16
    ),
    "decode, pages of 256, one KV head": _decode(
        "bandwidth of linear copies", 16, 16384, num_q_heads=8, num_kv_heads=1, page_size=256
    ),
    "decode, pages of 256, long contexts": _decode(
        "bandwidth of strided copies", 4, 32768, page_size=256
    ),
    "decode, two buffers, short sequences": replace(
        _decode("latency of a copy", 64, 64, num_q_heads=8, num_kv_heads=1, page_size=64),
        config={"bkv_sz": 128, "bkv_csz": 128, "seqs_per_step": 1, "num_buffers": 2},
    ),
    "decode, float8 cache": _decode(
        "bandwidth, vector units", 64, 2048, kv_dtype="float8_e4m3fn", k_scale=0.5, v_scale=0.25
    ),
    "prefill, 4096 tokens": _Kernel(
        tells="MXU", family="mixed", q_lens=(4096,), kv_lens=(4096,)
    ),
    "prefill, heads of 256, long context": _Kernel(
        tells="MXU latency, bandwidth", family="prefill", q_lens=(512, 512), kv_lens=(16384, 8192),
        problem=replace(_PROBLEM, num_q_heads=8, num_kv_heads=2, head_dim=256, sm_scale=0.0625),
    ),
    "prefill, float32": _Kernel(
        tells="MXU latency in float32", family="mixed", q_lens=(1024,), kv_lens=(2048,),
        problem=replace(
            _PROBLEM, num_q_heads=8, num_kv_heads=2, q_dtype="float32", kv_dtype="float32"
        ),
    ),
    "mixed, chunks among decodes": _Kernel(
        tells="all at once", family="mixed", q_lens=(1,) * 24 + (5, 120, 371),
        kv_lens=(*range(500, 500 + 24 * 61, 61), 905, 1400, 371),
    ),
}  # fmt: skip


def correctness_cases(chip: str, *, is_rehearsal: bool) -> list[Case]:
    """What each family must get right: fragmented pages, lengths at page and block boundaries.

    Args:
      chip: Name in the chip table.
      is_rehearsal: Few cases, with small blocks and few heads.
    """
    every = [
        (family, feature)
        for family, feature in itertools.product(FAMILIES, _FEATURES)
        if family in families_of(_FEATURES[feature])
    ]
    found = []
    for family, feature in _REHEARSED if is_rehearsal else every:
        problem = _FEATURES[feature]
        problem = replace(
            problem,
            max_num_tokens=_FEW_TOKENS if is_rehearsal else _NOMINAL_TOKENS,
            pages_per_seq=_NOMINAL_CONTEXT_TOKENS // problem.page_size,
        )
        candidate = _candidate(family, problem, chip, "")
        if is_rehearsal:
            candidate = _with_small_blocks(candidate)
        candidate, workload = stand_in(candidate, with_few_heads=is_rehearsal)
        found.append(Case(name=f"{family}, {feature}", candidate=candidate, workload=workload))
    return found


def kernel_cases(chip: str, *, is_rehearsal: bool) -> list[Case]:
    """The ten kernels, one batch each.

    Args:
      chip: Name in the chip table.
      is_rehearsal: Shorter contexts, fewer sequences and heads.
    """
    found = []
    for name, kernel in _KERNELS.items():
        kernel = _smaller(kernel) if is_rehearsal else kernel
        is_decode, is_prefill = kernel.family == "decode", kernel.family == "prefill"
        batch = Batch(
            q_lens=kernel.q_lens,
            kv_lens=kernel.kv_lens,
            num_decode=len(kernel.q_lens) if is_decode else 0,
            num_prefill=len(kernel.q_lens) if is_prefill else 0,
        )
        workload = Workload(
            name=name,
            source=f"rpa-tune tpu-check: {kernel.tells}",
            batches=(WeightedBatch(batch=batch, weight=1.0),),
        )
        problem = resized(kernel.problem, workload)
        candidate = _candidate(kernel.family, problem, chip, workload.digest)
        candidate = replace(candidate, config=replace(candidate.config, **kernel.config))
        if is_rehearsal:
            candidate = _with_small_blocks(candidate)
        found.append(Case(name=name, candidate=candidate, workload=workload))
    return found


def _candidate(family_name: str, problem: Problem, chip_name: str, workload: str) -> Candidate:
    family, chip = load_family(family_name), load_chip(chip_name)
    config = family.default_config(problem, chip.target)
    return Candidate(family=family, problem=problem, config=config, chip=chip, workload=workload)


def _with_small_blocks(candidate: Candidate) -> Candidate:
    """The same with the least KV blocks, which bound the contexts that break it, if it can be."""
    config = replace(candidate.config, bkv_sz=_LEAST_BLOCK_TOKENS, bkv_csz=_LEAST_BLOCK_TOKENS)
    target = candidate.chip.target
    can_exist = candidate.family.check(candidate.problem, config, target) is None
    return replace(candidate, config=config) if can_exist else candidate


def _smaller(kernel: _Kernel) -> _Kernel:
    """The same kernel for a CPU: at most two KV heads, two sequences, short contexts."""
    problem = kernel.problem
    heads = min(2, problem.num_kv_heads)
    most = 2 * max(problem.page_size, _LEAST_BLOCK_TOKENS)
    chunk = min(*kernel.q_lens, 32) if kernel.family == "prefill" else 32
    q_lens = tuple(min(n, chunk) for n in kernel.q_lens[-2:])
    kv_lens = tuple(max(q, min(n, most)) for q, n in zip(q_lens, kernel.kv_lens[-2:], strict=True))
    small = replace(problem, num_kv_heads=heads, num_q_heads=heads * problem.q_heads_per_kv_head)
    return replace(kernel, problem=small, q_lens=q_lens, kv_lens=kv_lens)
