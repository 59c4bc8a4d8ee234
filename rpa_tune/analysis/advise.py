"""`advise`: what a server's page size, KV dtype and number of devices are worth, in one table.

Attention is simulated, the least distance from the server's own flags first, as far as a number of
compiles goes; for the rest there is the lower bound that the kernels' accounts give. What a step
does beside attention is a roofline (`models/roofline.py`).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpa_kernels.layout import KV_LAYOUTS
from rpa_tune.analysis.advise_draft import Draft, draft, roofline_of
from rpa_tune.analysis.advise_record import Advice, Setting
from rpa_tune.analysis.advise_steps import Steps
from rpa_tune.analysis.advise_times import How, Times, find_times, finish
from rpa_tune.analysis.advise_words import differences
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.models.buckets import SGLANG_JAX, TPU_INFERENCE
from rpa_tune.models.flags import read_dtype, read_flag, read_list
from rpa_tune.models.roofline import WEIGHT_BYTES
from rpa_tune.models.server import Server, as_server
from rpa_tune.ranges import RANGES
from rpa_tune.workload.workload import check_spec

DEFAULT_COMPILES = 12
DEFAULT_WORKLOAD = "azure-conv"
# What is compared where nothing is said; the server's own is always added.
PAGE_SIZES = (64, 128, 256, 512)
CACHE_DTYPES = ("bfloat16", "float8_e4m3fn")
TPS = (1, 2, 4, 8)
# To compile one kernel, until one was compiled here. A guess.
_GUESSED_COMPILE_S = 8.0


def advise(
    server: Server | Mapping[str, Any],
    *,
    workload: str | Path | Mapping[str, Any] = DEFAULT_WORKLOAD,
    page_sizes: Sequence[int] = (),
    kv_dtypes: Sequence[str] = (),
    tps: Sequence[int] = (),
    weight_dtype: str = "bfloat16",
    tables: str | Path | None = None,
    **how: Any,
) -> Advice:
    """Compares settings of a server. No TPU needed.

    The same steps are timed in every setting: the workload's requests, served within the server's
    limits at its pace, with the configs that its dispatcher would choose.

    Args:
      server: Its flags: the setting that others are compared with.
      workload: A preset, a file or a mapping; see `load_workload`.
      page_sizes: Tokens in a page; `PAGE_SIZES` if empty.
      kv_dtypes: Dtype names of the KV cache; `CACHE_DTYPES` if empty.
      tps: Devices that share the heads; those of `TPS` that divide them if empty.
      weight_dtype: How the server keeps its weights; one of `roofline.WEIGHT_BYTES`.
      tables: Tables that take precedence over the shipped ones.
      **how: Fields of `How`; `compiles` is 12 if not given, and 0 for bounds alone.

    Raises:
      UsageError: Options that do not go together, a model without layers that a kernel serves, or
        a workload that the server cannot run.
      TraceError: The workload is a bad file.
      TableError: A table does not parse.
    """
    server, workload = as_server(server), check_spec(workload)
    asked = How(**{"compiles": DEFAULT_COMPILES, **how})
    RANGES["compiles"].check(asked.compiles, "compiles")
    settings = _settings(server, page_sizes, kv_dtypes, tps)
    rows_of = load_dispatcher(server.chip, None if tables is None else Path(tables)).tables
    server.layers()  # what is wrong with the server's own flags is an error, not a row
    weight_dtype = read_dtype(weight_dtype, WEIGHT_BYTES, "weight_dtype")
    roofline = roofline_of(server, weight_dtype)
    clock = roofline.clock(server.context_token_bytes) if roofline else None
    steps = Steps(workload, server, clock, asked.said)
    steps.at(server.page_size)
    drafts = [draft(server, one, steps, rows_of, weight_dtype) for one in settings]
    drafts = sorted(_worth_a_row(drafts, server), key=lambda one: _distance(one, server))
    if drafts[0].row.refusal:
        raise UsageError(drafts[0].row.refusal, where="the server's options")
    times = find_times(drafts, asked)
    rows = tuple(finish(one, times, roofline_of(one.server, weight_dtype)) for one in drafts)
    compiled = times.compiles_s
    return Advice(
        server=server,
        workload=steps.at(server.page_size),
        rows=rows,
        differences=tuple(differences(rows, rows[0])),
        notes=tuple(_notes(server, drafts, times)),
        weight_dtype=weight_dtype,
        compile_s=sum(compiled) / len(compiled) if compiled else _GUESSED_COMPILE_S,
        compile_is="measured here, with what else ran" if compiled else "a guess",
    )


def _settings(
    server: Server, page_sizes: Sequence[int], kv_dtypes: Sequence[str], tps: Sequence[int]
) -> list[Setting]:
    """The server's own and all others, crossed.

    Raises:
      UsageError: A value that nothing can have.
    """
    kv_dtypes = [read_flag("kv_dtype", one) for one in read_list(kv_dtypes, "kv_dtypes")]
    page_sizes, tps = read_list(page_sizes, "page_sizes"), read_list(tps, "tps")
    for name, values in (("page_size", page_sizes), ("tp", tps)):
        for value in values:
            RANGES[name].check(value, name)
    own = Setting(
        page_size=server.page_size, kv_dtype=server.kv_dtype, tp=server.tp, layout=server.kv_layout
    )
    divide = tps or [tp for tp in TPS if _divides(server, tp)]
    return [
        Setting(page_size=size, kv_dtype=dtype, tp=tp, layout=layout)
        for layout, tp, dtype, size in itertools.product(
            dict.fromkeys([own.layout, *KV_LAYOUTS]),
            sorted({own.tp, *divide}),
            dict.fromkeys([own.kv_dtype, *(kv_dtypes or CACHE_DTYPES)]),
            sorted({own.page_size, *(page_sizes or PAGE_SIZES)}),
        )
    ]


def _worth_a_row(drafts: Sequence[Draft], server: Server) -> list[Draft]:
    """Those in the server's layout, and of another one those that save bytes."""
    bytes_of = {one.row.setting: one.row.kv_token_bytes for one in drafts if one.can_be_had}

    def saves(setting: Setting) -> bool:
        own = bytes_of.get(replace(setting, layout=server.kv_layout))
        return setting in bytes_of and (own is None or bytes_of[setting] < own)

    return [
        one
        for one in drafts
        if one.row.setting.layout == server.kv_layout or saves(one.row.setting)
    ]


def _distance(one: Draft, server: Server) -> tuple[float, ...]:
    """How much a setting would change, what cannot be had last among its like.

    Pages before dtypes before layouts before devices, the nearest page size first.
    """
    setting = one.row.setting
    changes = (
        setting.tp != server.tp, setting.layout != server.kv_layout,
        setting.kv_dtype != server.kv_dtype,
        setting.page_size != server.page_size,
    )  # fmt: skip
    doublings = abs(math.log2(setting.page_size / server.page_size))
    return (sum(changes), not one.can_be_had, *changes, doublings)


def _divides(server: Server, tp: int) -> bool:
    try:
        server.loaded.at_tp(tp, splits_latents=server.engine != TPU_INFERENCE)
    except UsageError:
        return False
    return True


def _notes(server: Server, drafts: Sequence[Draft], times: Times) -> Iterator[str]:
    """What was taken for granted, left out, or went wrong."""
    model = server.loaded
    needed = {part.candidate.digest for one in drafts if one.can_be_had for part in one.parts}
    if len(times.simulated) < len(needed):
        yield (
            f"{len(times.simulated)} of {len(needed)} kernels were simulated; "
            f"compiles={len(needed)} simulates every setting"
        )
    if isinstance(model.weights, str):
        yield f"attention's share of a step, and what fits, are not known: {model.weights}"
    else:
        yield (
            "beside attention a step is a roofline: weights at HBM's nominal rate or products at "
            "the matrix units' peak, nothing for collectives, sampling, norms and the host"
        )
    for kind in model.unserved:
        yield (
            f"{kind.num_layers} {kind.label} layers are left out of attention's time: "
            f"{kind.refusal}"
        )
    if model.num_other:
        yield (
            f"{model.num_other} layers without attention are part of the roofline by their "
            "matrices alone; their state takes no room here"
        )
    for reach in ("window", "chunk"):
        if any(kind.label.startswith(reach) for kind in model.kinds):
            yield f"layers with a {reach} are taken to keep the whole context in their cache"
    if server.engine == SGLANG_JAX or server.uses_prefill:
        yield "prompts in the prefill slot are timed as the mixed family"
    sources = sorted({part.source for part in drafts[0].parts})
    yield f"configs of the server's own setting: {' and '.join(sources)} (rpa-tune audit says more)"
    for failure in times.failures:
        yield f"no simulated time: {failure}"
