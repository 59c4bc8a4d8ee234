"""The cells of the kernel comparison: chip x model x kind of work, and the batches of each.

All cells of one chip, model and kind share one `Problem`, so that each kernel is compiled once and
simulated on every batch of that kind.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_kernels.slots import family_of
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.catalog import load_model, problem_for
from rpa_tune.workload.workload import WeightedBatch, Workload, load_workload

PAGE_SIZE = 128
CACHE_SHARE = 0.9  # of HBM at most; the rest is for queries, results and the program
TRACE = "azure-conv"

# Model, tensor parallelism, KV dtype, whether the layers with a window are meant.
MODELS: dict[str, tuple[str, int, str, bool]] = {
    "llama3-8b": ("llama3-8b", 1, "bfloat16", False),
    "llama3-8b-fp8": ("llama3-8b", 1, "float8_e4m3fn", False),
    "llama3-70b-tp8": ("llama3-70b", 8, "bfloat16", False),
    "qwen3-32b-tp4": ("qwen3-32b", 4, "bfloat16", False),
    "gemma3-27b-window": ("gemma3-27b", 1, "bfloat16", True),
    "gpt-oss-20b": ("gpt-oss-20b", 1, "bfloat16", False),
}
KINDS = ("decode", "prefill", "mixed")
OPPONENTS = ("v3", "hd64", "batched", "stacked")  # public kernels, quick to compile before slow


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells that share a chip, a problem and a family.

    Attributes:
      chip: Name in the chip table.
      model: Key of `MODELS`, or what else says heads, dtype and page to people.
      kind: `decode`, `prefill` or `mixed`.
      problem: Static shapes and dtypes.
      batches: Batch by cell name.
    """

    chip: str
    model: str
    kind: str
    problem: Problem
    batches: dict[str, Batch]

    @property
    def workload(self) -> Workload:
        """All cells with one weight: what rankings over the whole group are made on."""
        return equally_often(self.batches)

    @property
    def family(self) -> str:
        """Our family that serves the batches: the public call sends prefill to MIXED as well."""
        slot = "decode" if self.kind == "decode" else "mixed"
        return family_of(slot, is_latent=self.problem.is_latent)


def groups(chips: list[str], models: list[str], kinds: list[str], quick: bool) -> Iterator[Group]:
    """All groups of the named chips, models and kinds; `quick` keeps a few batches of each.

    A batch whose KV cache, with the spare pages of its bucket, does not fit the chip is left out.
    """
    for chip in chips:
        for model in models:
            for kind in kinds:
                batches = _batches(kind)
                if quick:
                    batches = {name: batches[name] for name in list(batches)[:: len(batches) // 3]}
                batches = {
                    name: batch
                    for name, batch in batches.items()
                    if _cache_bytes(_problem(model, {name: batch}))
                    <= CACHE_SHARE * load_chip(chip).value("hbm_bytes")
                }
                problem = _problem(model, batches)
                yield Group(chip=chip, model=model, kind=kind, problem=problem, batches=batches)


def _problem(model_name: str, batches: dict[str, Batch]) -> Problem:
    name, tp, kv_dtype, windowed = MODELS[model_name]
    problem = problem_for(
        load_model(name),
        workload=equally_often(batches),
        page_size=PAGE_SIZE,
        tp=tp,
        kv_dtype=kv_dtype,
        windowed=windowed,
    )
    scaled = kv_dtype.startswith("float8")
    return replace(problem, k_scale=1.0, v_scale=1.0) if scaled else problem


def _cache_bytes(problem: Problem) -> int:
    shape = layout.kv_cache_shape(
        num_pages=problem.num_pages,
        page_size=problem.page_size,
        num_kv_heads=problem.num_kv_heads,
        head_dim=problem.head_dim,
        kv_dtype=problem.kv_dtype,
    )
    return math.prod(shape) * layout.WORD_BYTES // layout.packing(problem.kv_dtype)


def equally_often(batches: dict[str, Batch]) -> Workload:
    """A workload of cells with one weight."""
    weight = 1 / len(batches)
    weighted = tuple(WeightedBatch(batch=b, weight=weight) for b in batches.values())
    return Workload(name="cells", source="the cells of one group", batches=weighted)


def _batches(kind: str) -> dict[str, Batch]:
    if kind == "decode":
        uniform = {
            f"{kv}x{seqs}": Batch(q_lens=(1,) * seqs, kv_lens=(kv,) * seqs, num_decode=seqs)
            for kv in (512, 2048, 8192, 32768)
            for seqs in (8, 32, 128)
        }
        return uniform | _from_trace("decode")
    if kind == "prefill":
        lengths = {"2k": (2048, 2048), "8k": (8192, 8192)}
        lengths |= {
            f"chunk{q}+{prefix // 1024}k": (q, prefix + q)
            for q in (512, 2048)
            for prefix in (8192, 32768)
        }
        return {
            name: Batch(q_lens=(q,), kv_lens=(kv,), num_decode=0)
            for name, (q, kv) in lengths.items()
        }
    verify = Batch(q_lens=(4,) * 32, kv_lens=(4096,) * 32, num_decode=0)
    return {"verify4x32": verify} | _from_trace("mixed")


def _from_trace(family: str) -> dict[str, Batch]:
    """The two heaviest batches of the trace that are the family's alone."""
    workload = load_workload(TRACE, page_size=PAGE_SIZE).for_family(family)
    found = sorted(workload.batches, key=lambda w: -w.weight * sum(w.batch.kv_lens))
    batches = [only_family(w.batch, family) for w in found[:2]]
    return {f"trace-{i}": batch for i, batch in enumerate(batches)}


def only_family(batch: Batch, family: str) -> Batch:
    """The same batch without the sequences that other families serve."""
    keep = batch.family_seqs(family)
    return replace(
        batch,
        q_lens=tuple(batch.q_lens[i] for i in keep),
        kv_lens=tuple(batch.kv_lens[i] for i in keep),
        num_decode=len(keep) if family == "decode" else 0,
        num_prefill=0,
        page_table=None,
    )
