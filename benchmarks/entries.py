"""What the kernel comparison tries: each kernel with a few block sizes on each group of cells."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Group

from rpa_kernels import layout
from rpa_tune.candidate import Candidate, Status
from rpa_tune.evaluate import simulate_task
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate as foreign
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.provenance import kernel_digest, simulator_digest, versions


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One kernel with one set of block sizes on one group.

    Attributes:
      group: The cells.
      kernel: `ours`, `v3`, `hd64`, `batched` or `stacked`.
      blocks: Its block sizes; None: what a public function chooses itself.
      rank: Place among the kernel's block sizes, 0 first.
      source: Digest or version of the kernel's source.
      task: Name of the worker task.
      argument: What the task gets.
    """

    group: Group
    kernel: str
    blocks: Any
    rank: int
    source: str
    task: str
    argument: Any

    @property
    def title(self) -> str:
        """For people: chip, model, kind, kernel, number."""
        group = self.group
        return f"{group.chip} {group.model} {group.kind} {self.kernel} #{self.rank}"

    @property
    def identity(self) -> str:
        """What was asked, and what its answer depends on."""
        batches = hashlib.sha256(repr((self.group.problem, self.group.batches)).encode())
        parts = [
            self.group.chip, self.group.model, self.group.kind, batches.hexdigest()[:12],
            self.kernel, self.source, json.dumps(self.blocks), simulator_digest(),
            *(f"{name} {versions()[name]}" for name in ("jax", "libtpu")),
        ]  # fmt: skip
        return " ".join(parts)


def our_entries(group: Group, search: int, cache_dir: Path) -> list[Entry]:
    """The default config and the neighbours with the best lower bounds."""
    return [
        Entry(
            group=group,
            kernel="ours",
            blocks=candidate.family.config_to_dict(candidate.config),
            rank=rank,
            source=kernel_digest(group.family),
            task=simulate_task.TASK,
            argument=simulate_task.SimulateTask(
                candidate=candidate, batches=tuple(group.batches.values()), cache_dir=cache_dir
            ),
        )
        for rank, candidate in enumerate(our_candidates(group)[:search])
    ]


def our_candidates(group: Group) -> list[Candidate]:
    """The default config, then its neighbours, the best lower bound first."""
    family, chip = load_family(group.family), load_chip(group.chip)
    default = family.default_config(group.problem, chip.target)
    fields = family.config_to_dict(default)
    configs = [default]
    for name, values in family.search_axes(group.problem, chip.target).items():
        own = max(getattr(default, name), 0.5)
        steps = sorted(values, key=lambda v, own=own: abs(math.log2(max(v, 0.5) / own)))
        configs += [family.config_from_dict({**fields, name: value}) for value in steps[:3]]
    first, *rest = (
        Candidate(
            family=family,
            problem=group.problem,
            config=config,
            chip=chip,
            workload=group.workload.digest,
        )
        for config in dict.fromkeys(configs)
    )
    bounds = [
        evaluation
        for evaluation in AnalyticalEvaluator().evaluate_all(rest, group.workload)
        if evaluation.status is Status.OK
    ]
    return [first, *(e.candidate for e in sorted(bounds, key=lambda e: e.time_us))]


def public_entries(group: Group, search: int, root: Path, cache_dir: Path) -> list[Entry]:
    """The public kernels that take the problem, `search` block sizes each; none for v4."""
    if group.chip == "v4":
        return []
    if group.problem.head_dim == 64:
        spaces = {"hd64": _hd64_blocks(group)}
    else:
        spaces = {
            "v3": _v3_blocks(group),
            "batched": _batched_blocks(group, "batched"),
            "stacked": _batched_blocks(group, "stacked"),
        }
    return [
        Entry(
            group=group,
            kernel=kernel,
            blocks=blocks,
            rank=rank,
            source=WHEEL.version,
            task=foreign.TASK,
            argument=foreign.ForeignTask(
                kernel=kernel,
                root=root,
                chip=load_chip(group.chip),
                problem=group.problem,
                blocks=blocks,
                batches=tuple(group.batches.values()),
                cache_dir=cache_dir,
            ),
        )
        for kernel, space in spaces.items()
        for rank, blocks in enumerate([None, *space][:search])
    ]


def _v3_blocks(group: Group) -> list[Any]:
    """(bq_sz, bkv_sz, bq_csz, bkv_csz); first what its own choice, of long blocks, serves badly."""
    idle_d, idle_m = (1, 512, 1, 512), (32, 512, 32, 512)
    if group.kind == "decode":
        sizes = [(512, 512), (2048, 512), (1024, 512), (4096, 1024), (2048, 1024), (1024, 256)]
        return [{"d": (1, kv, 1, csz), "m": idle_m} for kv, csz in sizes]
    q = 4 if max(next(iter(group.batches.values())).q_lens) == 4 else 128
    sizes4 = [
        (q, 1024, q, 512), (2 * q, 1024, q, 512), (q, 2048, q, 1024), (2 * q, 1024, 2 * q, 512),
        (q, 512, q, 512), (4 * q, 1024, q, 512),
    ]  # fmt: skip
    return [{"d": idle_d, "m": sizes} for sizes in sizes4]


def _hd64_blocks(group: Group) -> list[Any]:
    """(pages, queries) of one block, the likeliest first."""
    queries = (8, 32) if group.kind == "decode" else (64, 128)
    return [(pages, q) for pages in (8, 16, 4) for q in queries]


def _batched_blocks(group: Group, kernel: str) -> list[Any]:
    """Fields of BlockSizes of `batched` or `stacked`, both cases; the idle one gets small ones."""
    is_stacked = kernel == "stacked"
    buffers = 2 if is_stacked else 3
    decodes = [(512, 8), (1024, 8), (1024, 4), (2048, 4), (512, 16), (2048, 2)]
    prefills = [(128, 1024), (64, 1024), (128, 512), (256, 1024), (64, 512), (256, 512)]
    if group.kind != "decode":
        decodes = [(512, 4)] * len(prefills)
    else:
        prefills = [(32, 512)] * len(decodes)
    least_kv = 0
    if group.problem.sliding_window is not None and is_stacked:
        # The stacked decode kernel takes a window in one block, and a page may lie across its end.
        least_kv = layout.align(group.problem.sliding_window + group.problem.page_size, 512)
    blocks = []
    for (kv, seqs), (q, prefill_kv) in zip(decodes, prefills, strict=True):
        decode = {
            "bq_sz": 1, "bkv_sz": max(kv, least_kv), "batch_size": seqs, "n_buffer": buffers,
        }  # fmt: skip
        prefill = {
            "bq_sz": q, "bq_c_sz": q, "bkv_sz": prefill_kv, "batch_size": 1, "n_buffer": buffers,
        }  # fmt: skip
        if not is_stacked:
            decode["bq_c_sz"] = 1
        blocks.append({"decode": decode, "prefill": prefill})
    return blocks
