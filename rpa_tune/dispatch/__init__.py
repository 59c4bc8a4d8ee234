"""Chooses and launches kernels in a serving engine. Needs jax, numpy and yaml only."""

from rpa_tune.dispatch.attention import (
    mla_ragged_paged_attention,
    page_runs,
    ragged_paged_attention,
)
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.dispatch.select import Choice, Source
from rpa_tune.models.buckets import Engine

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
