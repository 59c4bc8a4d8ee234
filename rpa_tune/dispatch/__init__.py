"""Chooses and launches kernels in a serving engine. Needs jax, numpy and yaml only."""

import logging

from rpa_tune.dispatch.attention import (
    mla_ragged_paged_attention,
    page_runs,
    ragged_paged_attention,
)
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.dispatch.select import Choice, Source
from rpa_tune.known_versions import faults
from rpa_tune.models.buckets import Engine
from rpa_tune.provenance import versions

__all__ = [
    "Choice",
    "Dispatcher",
    "Engine",
    "Launch",
    "LaunchPlan",
    "Source",
    "load_dispatcher",
    "mla_ragged_paged_attention",
    "page_runs",
    "ragged_paged_attention",
]

# Those of one chip alone are said once the chip is known: see `load_dispatcher`.
for _fault in faults(versions()):
    if not _fault.chips:
        logging.getLogger("rpa_tune.dispatch").warning(
            "%s; cure: %s", _fault.text(versions()[_fault.package] or ""), _fault.cure
        )
