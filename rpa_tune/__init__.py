"""rpa-tune: tunes, checks and dispatches Ragged Paged Attention kernels for TPUs.

`load_dispatcher`, `ragged_paged_attention`, `mla_ragged_paged_attention`, `page_runs`,
`merge_attention`, `merge_over_axis`,
`Problem`, `Step`, `Artifact` and the module `capture` are what a serving engine needs. `tune` and
`load_plan`, `plan_for`, `explain`, `explain_kernel`, `verify`, `audit`, `advise` and `Server` are
the commands of those names as calls (docs/python.md). All are imported when first used, so that
importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpa_kernels.merge import merge_attention, merge_over_axis
    from rpa_kernels.problem import Problem
    from rpa_tune import capture
    from rpa_tune.analysis.advise import advise
    from rpa_tune.analysis.audit import audit
    from rpa_tune.analysis.explain import explain
    from rpa_tune.analysis.verify import verify
    from rpa_tune.artifact.file import Artifact
    from rpa_tune.dispatch import (
        load_dispatcher,
        mla_ragged_paged_attention,
        page_runs,
        ragged_paged_attention,
    )
    from rpa_tune.models.server import Server
    from rpa_tune.sweep.plan import load_plan
    from rpa_tune.sweep.plan_for import plan_for
    from rpa_tune.sweep.run import tune
    from rpa_tune.tables.step import Step
    from rpa_tune.user_kernel.explain import explain_kernel

__version__ = "0.1.0"

_LAZY = {
    "Artifact": "rpa_tune.artifact.file",
    "Problem": "rpa_kernels.problem",
    "Server": "rpa_tune.models.server",
    "Step": "rpa_tune.tables.step",
    "advise": "rpa_tune.analysis.advise",
    "audit": "rpa_tune.analysis.audit",
    "explain": "rpa_tune.analysis.explain",
    "explain_kernel": "rpa_tune.user_kernel.explain",
    "load_dispatcher": "rpa_tune.dispatch",
    "load_plan": "rpa_tune.sweep.plan",
    "merge_attention": "rpa_kernels.merge",
    "merge_over_axis": "rpa_kernels.merge",
    "mla_ragged_paged_attention": "rpa_tune.dispatch",
    "page_runs": "rpa_tune.dispatch",
    "plan_for": "rpa_tune.sweep.plan_for",
    "ragged_paged_attention": "rpa_tune.dispatch",
    "tune": "rpa_tune.sweep.run",
    "verify": "rpa_tune.analysis.verify",
}
# Modules that people use by their full names, `rpa_tune.capture.record(...)`.
_LAZY_MODULES = ("capture",)

__all__ = [
    "Artifact",
    "Problem",
    "Server",
    "Step",
    "__version__",
    "advise",
    "audit",
    "capture",
    "explain",
    "explain_kernel",
    "load_dispatcher",
    "load_plan",
    "merge_attention",
    "merge_over_axis",
    "mla_ragged_paged_attention",
    "page_runs",
    "plan_for",
    "ragged_paged_attention",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name in _LAZY_MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
