"""The sweep plan that tunes what an audit misses."""

from collections.abc import Sequence
from typing import Any

import yaml

from rpa_kernels.layout import HEAD_ALONG_SUBLANE
from rpa_tune.analysis.server import Server
from rpa_tune.dispatch.audit import Entry
from rpa_tune.errors import UsageError
from rpa_tune.workload.workload import load_workload


def plan_text(server: Server, misses: Sequence[Entry], workload: str) -> str:
    """A plan, as YAML: the server's shapes that have misses, with the families that do.

    Args:
      server: Whose look-ups they are.
      misses: Look-ups to tune.
      workload: A preset, or a file.

    Raises:
      UsageError: An unknown workload, or one that launches none of the families.
    """
    left_out = left_out_of_plan(server, misses, workload)
    families = sorted({entry.family for entry in misses} - set(left_out))
    if not families:
        raise UsageError(
            f"workload {workload!r} launches none of {', '.join(left_out)}",
            hint="name another --workload",
        )
    missing = {entry.problem.max_num_tokens for entry in misses if entry.family in families}
    limits: dict[str, Any] = {
        "max_num_seqs": server.max_num_seqs,
        "max_num_batched_tokens": server.max_num_batched_tokens,
        "max_model_len": server.max_model_len,
    }
    if server.bucket_seqs:
        limits["bucket_seqs"] = True
    if missing != {shape.num_tokens for shape in server.limits.shapes()}:
        limits["tokens"] = sorted(missing)
    plan = {
        "about": f"What rpa-tune audit finds untuned for {server.model} on {server.chip}.",
        "chip": server.chip,
        "model": server.model,
        "families": families,
        "page_size": server.page_size,
        "kv_dtype": server.kv_dtype,
        **({} if server.kv_layout == HEAD_ALONG_SUBLANE else {"kv_layout": server.kv_layout}),
        "tp": server.tp,
        "workload": workload,
        "server": limits,
    }
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=100)


def left_out_of_plan(server: Server, misses: Sequence[Entry], workload: str) -> dict[str, str]:
    """Families with misses that the workload never launches, and why.

    Raises:
      UsageError: An unknown workload.
    """
    batches = load_workload(workload, page_size=server.page_size)
    left_out = {}
    for family in sorted({entry.family for entry in misses}):
        try:
            batches.for_family(family)
        except ValueError as error:
            left_out[family] = str(error)
    return left_out
