"""What public kernels have in common, whatever package they come from. No jax.

The kernels are not ours, so there is no exact account: bytes, FLOPs and scratch are floors that no
kernel goes below, good for bounding and for noticing a schedule that drops work.

To add a package: a folder beside `tpu_inference/` with `package.py` (a `PublicPackage`), a subclass
of `PublicFamily` with one object for each Pallas call, and a line in `families/registry.py`. What
needs jax or the package's own code is imported within the methods that need it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rpa_kernels import layout, limits, useful
from rpa_kernels.batch import Batch
from rpa_kernels.cores import ONLY_CORE, Core
from rpa_kernels.family import Traffic
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Executed, Family
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.package import PublicPackage


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class PublicFamily(Family):
    """One Pallas call of a public function, tuned while its other calls get small blocks.

    Attributes:
      package: Where it comes from.
    """

    package: PublicPackage

    @property
    def digest(self) -> str:
        """Of its package."""
        return self.package.digest

    @property
    def unavailable(self) -> str:
        """Why it cannot be compiled with what is installed; empty if it can."""
        return self.package.unavailable

    def fetch(self, cache: Path) -> None:
        """Fetches the package's wheel, unless it is there or of no use here."""
        if not self.unavailable:
            self.package.wheel.use(cache)

    def find_mismatch(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch, executed: Executed
    ) -> str:
        """Only a schedule that reads less than the cached K and V is caught."""
        del config, chip
        least = least_cached_bytes(problem, batch, self.slots)
        read = executed.traffic.read_bytes
        if read < least:
            # Its schedule has a fixed length; what does not fit is dropped without a word.
            return (
                f"reads {read:,} of {least:,} cached bytes: the kernel's own schedule is too short"
            )
        return ""


def floors(slots: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a family whose kernel serves `slots` that are no better than floors."""
    return {
        "slots": slots,
        "is_launched": False,
        "unverified": "public kernel",
        # Engines that call a public kernel have one config a problem, and no rule to pick by.
        "most_configs": 1,
        "partition": None,
        "smem_bytes": _smem_bytes,
        "traffic": partial(_traffic, slots),
        "useful_bytes": partial(_useful_bytes, slots),
        "mxu_flops": partial(_mxu_flops, slots),
        "useful_flops": partial(_useful_flops, slots),
        "num_steps": partial(_num_steps, slots),
        "launch": _refuse_launch,
    }


def refusal(limit: str, hint: str) -> Infeasible:
    """A limit that no block sizes can mend."""
    return Infeasible(limit=limit, need=1, have=0, unit="", hint=hint)


def check_features(problem: Problem, *, is_latent: bool = False) -> Infeasible | None:
    """None when a problem is of the kind that public kernels are tuned for, else a refusal.

    Args:
      problem: Static shapes.
      is_latent: Whether the kernel takes latent caches; those that do take no others.
    """
    if problem.is_latent is not is_latent:
        return refusal("rope_dim", "public-mla takes latent caches, the others do not")
    has_default_output = problem.out_dtype in (None, problem.q_dtype)
    if not problem.causal or not problem.update_kv_cache or not has_default_output:
        hint = "public kernels are tuned with a causal mask, a cache update and the default output"
        return refusal("features", hint)
    if problem.attention_chunk_size is not None:
        return refusal("attention_chunk_size", "public kernels have no chunked local attention")
    if problem.is_seq_along_lane:
        return refusal("kv_layout", "public kernels are tuned with the layout that they default to")
    if problem.return_lse:
        return refusal("return_lse", "public kernels return no log-sum-exp")
    if problem.decode_query_size > 1:  # a tree mask among them
        return refusal("decode_query_size", "public kernels decode one token a sequence")
    return None


def least_cached_bytes(problem: Problem, batch: Batch, slots: tuple[str, ...]) -> int:
    """Bytes of cached K and V that a kernel must read; 0 where a window makes it fewer."""
    if problem.sliding_window is not None:
        return 0
    token_bytes = _token_kv_bytes(problem)
    seqs = [i for slot in slots for i in batch.family_seqs(slot)]
    return sum(batch.kv_lens[i] - batch.q_lens[i] for i in seqs) * token_bytes


def _token_kv_bytes(problem: Problem) -> int:
    """Bytes that a token has in the cache, without padding: K and V, or a latent and a rope row."""
    elements = 2 * problem.num_kv_heads * problem.head_dim
    if problem.rope_dim is not None:
        elements = problem.head_dim + problem.rope_dim
    return elements * layout.dtype_bytes(problem.kv_dtype)


def _traffic(
    slots: tuple[str, ...], problem: Problem, config: Any, batch: Batch, core: Core = ONLY_CORE
) -> Traffic:
    """Bytes that no kernel could avoid moving, by direction; no copy is counted."""
    del config, core
    tokens = sum(batch.q_lens[i] for slot in slots for i in batch.family_seqs(slot))
    token_q = problem.num_q_heads * problem.head_dim * layout.dtype_bytes(problem.q_dtype)
    token_kv = _token_kv_bytes(problem)
    written = tokens * (token_q + (token_kv if problem.update_kv_cache else 0))
    total = _useful_bytes(slots, problem, batch)
    return Traffic(read_bytes=total - written, write_bytes=written, num_copies=0)


def _useful_bytes(slots: tuple[str, ...], problem: Problem, batch: Batch) -> int:
    return sum(useful.useful_bytes(slot, problem, batch) for slot in slots)


def _useful_flops(slots: tuple[str, ...], problem: Problem, batch: Batch) -> int:
    return sum(useful.useful_flops(slot, problem, batch) for slot in slots)


def _mxu_flops(
    slots: tuple[str, ...],
    problem: Problem,
    config: Any,
    batch: Batch,
    target: Target,
    core: Core = ONLY_CORE,
) -> int:
    del config, target, core
    return _useful_flops(slots, problem, batch)


def _num_steps(
    slots: tuple[str, ...], problem: Problem, config: Any, batch: Batch, core: Core = ONLY_CORE
) -> int:
    """KV blocks of all contexts: each is walked at least once."""
    del problem, core
    seqs = [i for slot in slots for i in batch.family_seqs(slot)]
    return sum(cdiv(batch.kv_lens[i], config.bkv_sz) for i in seqs)


def _smem_bytes(problem: Problem, config: Any) -> int:
    del config
    return limits.smem_bytes(problem)


def _refuse_launch(*_: Any, **__: Any) -> Any:
    raise UsageError(
        "public kernels are tuned, not launched",
        hint="export their rows: rpa-tune tables export",
    )
