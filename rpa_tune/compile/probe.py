"""A small kernel of ours, compiled to show whether compiling works: decode, one KV head."""

from dataclasses import dataclass

from rpa_kernels.problem import Problem
from rpa_tune.candidate import Status
from rpa_tune.compile.dumps import schedule_digest
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip

FAMILY = "decode"
PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=1, head_dim=128, page_size=64, max_num_tokens=16, max_num_seqs=8,
    pages_per_seq=4, num_pages=32, sm_scale=128**-0.5,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What came of it.

    Attributes:
      detail: Why the compiler refused; empty when it did not.
      seconds: Lowering and compiling.
      schedule: Text of the dump.
      digest: `dumps.schedule_digest` of it; empty without one.
    """

    detail: str
    seconds: float
    schedule: str
    digest: str = ""


def compile_probe(chip: str) -> Probe:
    """Compiles the probe for a chip, in a worker.

    Raises:
      Exception: What tracing raises.
    """
    # Here, because the parent of a sweep takes the problem from this module, and needs no jax.
    from rpa_tune.compile.lower import compile_call

    family, record = load_family(FAMILY), load_chip(chip)
    config = family.default_config(PROBLEM, record.target)
    compiled = compile_call(family.call(PROBLEM, config, record), record)
    return Probe(
        detail="" if compiled.status is Status.OK else compiled.detail,
        seconds=compiled.lower_s + compiled.compile_s,
        schedule=compiled.bundles.read_text() if compiled.bundles else "",
        digest=schedule_digest(compiled.bundles) if compiled.bundles else "",
    )
