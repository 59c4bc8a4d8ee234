"""What a few query tokens a sequence cost in decode, beside one token over the same contexts.

    python benchmarks/short_queries.py --json benchmarks/results/short_queries.json

Speculative decoding and multi-token prediction verify a few tokens of each sequence in one step.
Decode serves them with `decode_query_size`. Each cell is 32 sequences of one context length, with
4 new tokens each and with one: the same contexts and pages. `ratio` is the time of the one over
that of the other, each with the best of a few block sizes; `mixed_us` is the time of 4 tokens in
the mixed family, which served them before. Pages are drawn at random.

Times are simulated; bytes and copies of every cell are held to the account.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from candidates import fitting

from rpa_kernels.batch import Batch
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.slots import family_of
from rpa_tune.candidate import Candidate, Status
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import WeightedBatch, Workload

SEQS, TOKENS, PAGE_SIZE = 32, 4, 128
CONTEXTS = (4096, 16384)
# Fields of the problem. Float8 caches have scales of 1, but for latents, whose queries are float8.
KINDS: dict[str, dict[str, Any]] = {
    f"{q_heads} on {kv_heads}{name}": {
        "num_q_heads": q_heads, "num_kv_heads": kv_heads, "head_dim": 128, "sm_scale": 128**-0.5,
        "page_size": PAGE_SIZE, "kv_dtype": kv_dtype, "k_scale": scale, "v_scale": scale,
    }
    for name, kv_dtype, scale in (("", "bfloat16", None), (" float8", "float8_e4m3fn", 1.0))
    for q_heads, kv_heads in ((8, 1), (32, 8))
} | {
    "128 on latents float8": {
        "num_q_heads": 128, "num_kv_heads": 1, "head_dim": 512, "rope_dim": 64,
        "sm_scale": 192**-0.5, "page_size": 1024, "kv_packing": 32, "q_dtype": "float8_e4m3fn",
        "kv_dtype": "float8_e4m3fn",
    },
}  # fmt: skip
# Fields beside the default config.
CONFIGS: list[dict[str, int]] = [
    {},
    {"bkv_sz": 1024, "bkv_csz": 512, "seqs_per_step": 2},
    {"bkv_sz": 1024, "bkv_csz": 1024, "seqs_per_step": 1},
]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of a chip and a kind with so many new tokens a sequence, in one family."""

    chip: str
    kind: str
    tokens: int
    family: str = "decode"
    default_only: bool = False

    @property
    def problem(self) -> Problem:
        """Static shapes, for the longest of the contexts."""
        fields = KINDS[self.kind]
        pages = cdiv(max(CONTEXTS), fields["page_size"])
        return Problem(
            max_num_tokens=SEQS * TOKENS, max_num_seqs=SEQS, pages_per_seq=pages,
            num_pages=pages * SEQS, decode_query_size=self.tokens, **fields,
        )  # fmt: skip

    @property
    def workload(self) -> Workload:
        """A batch for each context."""
        batches = [
            WeightedBatch(
                batch=Batch(
                    q_lens=(self.tokens,) * SEQS, kv_lens=(context,) * SEQS,
                    num_decode=SEQS if self.family == "decode" else 0,
                ),
                weight=1 / len(CONTEXTS),
            )
            for context in CONTEXTS
        ]  # fmt: skip
        return Workload(name=self.kind, source="made up", batches=tuple(batches))

    @property
    def candidates(self) -> list[Candidate]:
        """The default config, and for decode others that fit."""
        name = family_of(self.family, is_latent=self.problem.is_latent)
        family, chip = load_family(name), load_chip(self.chip)
        default = family.default_config(self.problem, chip.target)
        others = CONFIGS if self.family == "decode" and not self.default_only else [{}]
        configs = dict.fromkeys(replace(default, **fields) for fields in others)
        return fitting(family, self.problem, chip, self.workload, configs)


def times(group: Group, evaluator: SimulatedEvaluator) -> tuple[list[float], list[float]]:
    """Microseconds of each batch: with the default config, and with the best.

    Raises:
      SystemExit: The default has no time.
    """
    found = []
    for simulation in evaluator.simulate_all(group.candidates, group.workload):
        evaluation = simulation.evaluation
        if evaluation.status is Status.OK:
            is_default = evaluation.candidate.config == group.candidates[0].config
            found.append((is_default, [timeline.time_us for timeline in simulation.timelines]))
        else:
            click.echo(f"  {evaluation.candidate.config}: {evaluation.detail}", err=True)
    default = [batch_us for is_default, batch_us in found if is_default]
    if not default:
        raise SystemExit(f"{group}: the default config has no time")
    return default[0], [min(one) for one in zip(*(batch_us for _, batch_us in found), strict=True)]


def cells(group: Group, evaluator: SimulatedEvaluator) -> Iterator[dict[str, Any]]:
    """A cell for each context; the group is that of several tokens in decode."""
    chip, kind = group.chip, group.kind
    single_default, single = times(replace(group, tokens=1), evaluator)
    several_default, several = times(group, evaluator)
    mixed, _ = times(replace(group, family="mixed"), evaluator)
    for i, context in enumerate(CONTEXTS):
        yield {
            "chip": chip, "kind": kind, "context": context, "seqs": SEQS, "tokens": TOKENS,
            "page_size": group.problem.page_size, "one_token_us": single[i], "time_us": several[i],
            "ratio": several[i] / single[i],
            "default_ratio": several_default[i] / single_default[i],
            "mixed_us": mixed[i],
        }  # fmt: skip


@click.command()
@click.option("--chips", default=",".join(load_chips()), help="Comma-separated.")
@click.option("--kinds", default=",".join(KINDS), help="Comma-separated.")
@click.option("--default-only", is_flag=True, help="Default configs alone.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--cache", default=Path(".rpa-tune/cache"), type=Path, help="Of compiles.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(
    chips: str, kinds: str, default_only: bool, workers: int, cache: Path, json_file: Path | None
) -> None:
    """Prints one line a cell."""
    evaluator = SimulatedEvaluator(num_workers=workers, cache_dir=cache, deadline_s=900)
    found: list[dict[str, Any]] = []
    try:
        for chip, kind in ((c, k) for c in chips.split(",") for k in kinds.split(",")):
            group = Group(chip=chip, kind=kind, tokens=TOKENS, default_only=default_only)
            for cell in cells(group, evaluator):
                found.append(cell)
                click.echo(
                    f"{chip:4} {kind:15} {cell['context']:6}  {cell['one_token_us']:8.1f} -> "
                    f"{cell['time_us']:8.1f} us ({cell['ratio']:5.3f}x; with default configs "
                    f"{cell['default_ratio']:5.3f}x)  mixed {cell['mixed_us']:8.1f} us"
                )
    finally:
        evaluator.close()
    report = {
        "evidence": "simulated",
        "versions": provenance(load_family("decode").digest),
        "worst_ratio": max((cell["ratio"] for cell in found), default=None),
        "cells": found,
    }
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
