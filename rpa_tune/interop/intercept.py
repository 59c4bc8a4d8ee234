"""Stands in for the attention functions of tpu-inference.

```
stand_in = install(load_dispatcher())
with stand_in.expect_calls():
    engine.warm_up()
```

An engine that is loaded and whose functions have drifted is refused when this module is imported.
With the engine's `--attention-backend rpa_tune` nobody needs to call this: see `vllm_plugin.py`.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from rpa_kernels.layout import HEAD_ALONG_SUBLANE, SEQ_ALONG_LANE
from rpa_tune.dispatch.call import Features
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.mla_call import LatentFeatures
from rpa_tune.errors import UsageError
from rpa_tune.interop.engine_call import Served
from rpa_tune.interop.guard import Guard
from rpa_tune.interop.public.tpu_inference.functions import FUNCTIONS, LEADING, MODULES
from rpa_tune.interop.public.tpu_inference.package import PACKAGE
from rpa_tune.interop.stand_in import StandIn, check_drift

# Parameters that the stand-in understands beside the arrays: those of our call, and blocks of the
# other kernels, which say nothing to ours.
_IGNORED = {
    "num_kv_pages_per_block", "num_queries_per_block", "decode_block_sizes", "prefill_block_sizes",
}  # fmt: skip
_OF_RPA = frozenset({
    *LEADING["v3"], "attention_sink", "decode_query_size", *Features.__annotations__, *_IGNORED,
})  # fmt: skip
_KNOWN = dict.fromkeys(("v3", "hd64", "batched"), _OF_RPA) | {
    "mla": frozenset({*LEADING["mla"], *LatentFeatures.__annotations__})
}
INTERFACE = "tpu_inference.layers.common.attention_interface"
_PACKAGE = "tpu_inference"
# What its layers call for head size 64, for all others (v3's or the batched kernel's), and for
# latents.
_CALLED = (
    "ragged_paged_attention_hd64", "ragged_paged_attention", "mla_ragged_paged_attention",
)  # fmt: skip
# Attention of other kinds that its layers call as well: nothing of ours takes its place.
_WATCHED = ("dcp_forward", "pcp_forward")
_HINT = f"rpa-tune supports {PACKAGE.title}"


def install(
    dispatcher: Dispatcher, *, interpret: Any = None, guard: Guard | None = None
) -> StandIn:
    """Replaces the v3, hd64, batched and latent (mla) functions of a loaded tpu-inference.

    Args:
      dispatcher: Plans every call from its tables when it is traced.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.
      guard: Compares with the engine's function, and falls back on it; None for neither.

    Raises:
      UsageError: tpu-inference is not loaded, its signature has drifted, or a name from which its
        layers call attention holds a function that is none of those.
    """
    originals = loaded_functions()
    if not originals:
        raise UsageError(
            "tpu-inference is not loaded: there is nothing to replace",
            hint=f"import {INTERFACE} first",
        )
    stand_in = StandIn()
    served = Served(dispatcher=dispatcher, interpret=interpret, guard=guard)
    for kernel, function in originals.items():
        attend = functools.partial(_attend, served, kernel, function)
        if kernel == "mla":
            attend = functools.partial(_attend_latent, served, function)
        stand_in.replace(function, attend, _PACKAGE)
    stand_in.require([f"{INTERFACE}.{name}" for name in _CALLED], _HINT)
    for name in _WATCHED:
        if function := getattr(sys.modules[INTERFACE], name, None):
            stand_in.watch(function, f"{INTERFACE}.{name}", _PACKAGE)
    return stand_in


def loaded_functions() -> dict[str, Any]:
    """The functions that are replaced, by kernel, as far as their modules are loaded.

    Raises:
      UsageError: One of them has drifted.
    """
    found = {}
    for kernel, known in _KNOWN.items():
        if MODULES[kernel] not in sys.modules:
            continue
        name = FUNCTIONS.get(kernel, "ragged_paged_attention")
        function = getattr(sys.modules[MODULES[kernel]], name, None)
        check_drift(
            function, f"{MODULES[kernel]}.{name}", leading=LEADING[kernel], known=known,
            hint=_HINT,
        )  # fmt: skip
        found[kernel] = function
    return found


def _attend(
    served: Served, kernel: str, original: Callable[..., Any], *arrays: Any, **features: Any
) -> tuple[Any, ...]:
    """One call of the engine, by our kernels."""
    if "attention_sink" in features:
        arrays = (*arrays, features.pop("attention_sink"))
    known = {name: value for name, value in features.items() if name not in _IGNORED}
    query_size = known.pop("decode_query_size", 1)
    if kernel == "batched" and known.get("kv_layout") is None:
        known["kv_layout"] = batched_layout()
    theirs = functools.partial(original, **features)
    return served.attend(arrays, known, theirs=theirs, query_size=query_size)


def _attend_latent(
    served: Served, original: Callable[..., Any], *arrays: Any, **features: Any
) -> tuple[Any, ...]:
    """The same of its layers with latents; our call takes and checks all that theirs does."""
    theirs = functools.partial(original, **features)
    return served.attend_latent(arrays, features, theirs=theirs)


def batched_layout() -> str:
    """The layout that the batched function takes where a call names none."""
    envs = sys.modules.get("tpu_inference.envs")
    is_along_lane = getattr(envs, "USE_BATCHED_RPA_SEQ_ON_LANE", False)
    return SEQ_ALONG_LANE if is_along_lane else HEAD_ALONG_SUBLANE


loaded_functions()
