"""Table rows for tests."""

from dataclasses import replace

from rpa_kernels import FAMILIES, load_family
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import kernel_digest
from rpa_tune.tables.key import beyond_key, tuning_key
from rpa_tune.tables.row import ALWAYS_FIRST, Evidence, TableRow

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=32,
    max_num_seqs=8, pages_per_seq=16, num_pages=128,
)  # fmt: skip

# DeepSeek-V3 on a device that has all heads.
LATENT = Problem(
    num_q_heads=128, num_kv_heads=1, head_dim=512, rope_dim=64, kv_packing=32, page_size=1024,
    max_num_tokens=128, max_num_seqs=64, pages_per_seq=8, num_pages=512,
    q_dtype="float8_e4m3fn", kv_dtype="float8_e4m3fn",
)  # fmt: skip


def make_evidence(**fields):
    return replace(
        Evidence(
            verdict="tuned", fidelity="simulated", time_us=50.0, heuristic_us=60.0,
            error_pct=5.0, regret_pct=0.0, bound_by="hbm", workload="made-up",
            workload_source="made up",
            workload_digest="0" * 16, num_candidates=3, verified="", kernel_digest="",
            jax="0", libtpu="0", date="2026-01-02",
        ),
        **fields,
    )  # fmt: skip


def default_config(family="decode", problem=PROBLEM, chip="v6e", **changes):
    record = load_family(family)
    config = record.default_config(problem, load_chip(chip).target)
    return record.config_to_dict(replace(config, **changes))


def make_row(family="decode", problem=PROBLEM, chip="v6e", configs=None, rule=ALWAYS_FIRST, **ev):
    # A public family's default is known to its package alone; such a row is silent about it.
    heuristic = default_config(family, problem, chip) if family in FAMILIES else None
    return TableRow(
        key=tuning_key(problem, chip, family),
        configs=tuple(configs or (default_config(family, problem, chip),)),
        rule=rule,
        evidence=make_evidence(
            **{
                "kernel_digest": kernel_digest(family),
                "heuristic": heuristic,
                **ev,
            }
        ),
    )


def timed_row(family, problem=PROBLEM, **rest):
    """A row that says the exact problem it was timed on, as rows of sweeps do."""
    row = make_row(family, problem, **rest)
    return replace(row, evidence=replace(row.evidence, problem=beyond_key(problem, row.key)))
