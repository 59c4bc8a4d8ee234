"""The latent attention kernel of tpu-inference (`mla/v2/kernel.py`): blocks, limits, names. No jax.

Its function launches up to three attention kernels: decode sequences by the batch
(`BATCHED_DECODE`), those that fill no batch one by one (`DECODE`), and all others (`MIXED`). Before
and after them it turns queries and output over, between heads-first and tokens-first.

Neighbours: `families.py` makes families of this; `own_choice.py` asks its table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rpa_kernels import kv_blocks, layout, limits
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.interop.public.batched import check_multiple, check_scratch
from rpa_tune.interop.public.family import check_features, refusal
from rpa_tune.interop.public.tpu_inference.package import DEVICE_NAMES

_BUFFERS = 2  # of queries, keys and output. Source: `run_mla_kernel`
_SPARE_ROWS = 2  # rows of the cache in a KV buffer, for new tokens that begin within one. The same
_FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaDecodeConfig:
    """Blocks of the kernel for decode sequences.

    Attributes:
      bkv_sz: Tokens of a KV block; its `num_kv_pages_per_block`, in tokens.
      batch_size: Sequences that are handled together; its `decode_batch_size`. Those that fill no
        batch are launched one by one, with the same KV block.
    """

    bkv_sz: int
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaMixedConfig:
    """Blocks of the kernel for all other sequences.

    Attributes:
      bq_sz: Tokens of a query block; its `num_queries_per_block`.
      bkv_sz: Tokens of a KV block; its `num_kv_pages_per_block`, in tokens.
      q_split: Parts of a query block whose products alternate; divides `bq_sz`. Its
        `mixed_q_split`.
    """

    bq_sz: int
    bkv_sz: int
    q_split: int


def check_call(problem: Problem, target: Target) -> Infeasible | None:
    """What no block sizes can mend. Source: `static_validate_inputs`."""
    if target.chip not in DEVICE_NAMES:
        return refusal("chip", f"the public kernels know {', '.join(DEVICE_NAMES)}")
    return check_features(problem, is_latent=True)


def check(problem: Problem, config: Any, target: Target) -> Infeasible | None:
    """None when the kernel takes these blocks, else the limit they break."""
    is_decode = isinstance(config, MlaDecodeConfig)
    names = ("bkv_sz", "batch_size") if is_decode else ("bq_sz", "bkv_sz", "q_split")
    bad = limits.check_positive(**{name: getattr(config, name) for name in names})
    bad = bad or check_call(problem, target)
    bad = bad or check_multiple("bkv_sz % page_size", config.bkv_sz, problem.page_size)
    if not is_decode:
        bad = bad or check_multiple("bq_sz % q_split", config.bq_sz, config.q_split)
    return bad or check_scratch(scratch_bytes(problem, config, target), target)


def scratch_bytes(problem: Problem, config: Any, target: Target) -> int:
    """Bytes of the kernel's own VMEM buffers. Source: `scratch_shapes` of `run_mla_kernel`."""
    del target
    latent, rope = problem.padded_head_dim, problem.rope_lanes
    is_decode = isinstance(config, MlaDecodeConfig)
    seqs, queries = (config.batch_size, 1) if is_decode else (1, config.bq_sz)
    rows = queries * layout.align(problem.num_q_heads, layout.packing(problem.q_dtype))
    kv_rows = config.bkv_sz + _SPARE_ROWS * problem.row_tokens
    keys = kv_rows * (latent + rope) * layout.dtype_bytes(problem.kv_dtype)
    turned = rows * (2 * latent + rope) * layout.dtype_bytes(problem.q_dtype)
    running = rows * (2 * layout.LANES + latent) * _FLOAT32_BYTES
    return int(seqs * (_BUFFERS * (keys + turned) + running))


def decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """What to try for decode."""
    del target
    sizes = (512, 1024, 2048, 3072, 4096)
    return {
        "bkv_sz": kv_blocks.block_sizes(problem, sizes),
        "batch_size": tuple(n for n in (1, 2, 4, 8, 16) if n <= problem.max_num_seqs),
    }


def mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """What to try for everything else."""
    del target
    queries = (2, 4, 8, 16, 32, 64, 128)
    return {
        "bq_sz": tuple(n for n in queries if n <= problem.max_num_tokens),
        "bkv_sz": kv_blocks.block_sizes(problem, (512, 1024, 2048)),
        "q_split": (1, 2, 4, 8, 16),
    }


def call_names(problem: Problem, config: Any) -> tuple[str, ...]:
    """Names of the Pallas calls that a config decides. Source: `scope_name` in `run_mla_kernel`."""
    page, pages = problem.page_size, config.bkv_sz // problem.page_size
    if isinstance(config, MlaDecodeConfig):
        sizes = (("bd", config.batch_size), ("d", 1))
        return tuple(f"MLA-{case}-bq_1-bkvp_{pages}-p_{page}-bsz_{n}" for case, n in sizes)
    return (f"MLA-m-bq_{config.bq_sz}-bkvp_{pages}-p_{page}-bsz_1",)


def kernel_name(problem: Problem, config: Any) -> str:
    """Name of the first of `call_names`."""
    return call_names(problem, config)[0]


def mla_keywords(
    *, decode: Mapping[str, int], mixed: Mapping[str, int], page_size: int
) -> dict[str, Any]:
    """The function's keyword arguments, by fields of both configs.

    Those of its static prefill case, which no engine launches, are mixed's, as in the engine.
    """
    pages = [case["bkv_sz"] // page_size for case in (decode, mixed, mixed)]
    return {
        "num_kv_pages_per_block": tuple(pages),
        "num_queries_per_block": (1, mixed["bq_sz"], mixed["bq_sz"]),
        "decode_batch_size": decode["batch_size"],
        "mixed_q_split": mixed["q_split"],
    }
