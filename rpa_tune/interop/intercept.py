"""Stands in for the attention functions of tpu-inference.

```
stand_in = install(load_dispatcher())
with stand_in.expect_calls():
    engine.warm_up()
```

An engine that is loaded and whose functions have drifted is refused when this module is imported.
"""

import functools
import sys
from typing import Any

from rpa_tune.dispatch.attention import mla_ragged_paged_attention, ragged_paged_attention
from rpa_tune.dispatch.call import Features
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.mla_call import LatentFeatures
from rpa_tune.errors import UsageError
from rpa_tune.interop.public.tpu_inference.functions import FUNCTIONS, LEADING, MODULES
from rpa_tune.interop.public.tpu_inference.package import PACKAGE
from rpa_tune.interop.stand_in import StandIn, check_drift

# Parameters that the stand-ins understand beside the arrays: those of our calls, and blocks of the
# hd64 kernel, which say nothing to ours.
_IGNORED = {"num_kv_pages_per_block", "num_queries_per_block"}
_OF_RPA = frozenset({"attention_sink", *Features.__annotations__, *_IGNORED})
_KNOWN = {"v3": _OF_RPA, "hd64": _OF_RPA, "mla": frozenset(LatentFeatures.__annotations__)}
INTERFACE = "tpu_inference.layers.common.attention_interface"


def install(dispatcher: Dispatcher, *, interpret: Any = None) -> StandIn:
    """Replaces the v3, hd64 and latent (mla) functions of a loaded tpu-inference.

    Args:
      dispatcher: Plans every call from its tables when it is traced.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.

    Raises:
      UsageError: tpu-inference is not loaded, its signature has drifted, or its layers look the
        function up under no name that can be replaced.
    """
    originals = loaded_functions()
    if not originals:
        raise UsageError(
            "tpu-inference is not loaded: there is nothing to replace",
            hint=f"import {INTERFACE} first",
        )
    stand_in = StandIn()
    for kernel, function in originals.items():
        call = _attend_latent if kernel == "mla" else _attend
        attend = functools.partial(call, dispatcher, interpret)
        stand_in.replace(function, attend, "tpu_inference")
    if not any(place.startswith(INTERFACE) for place in stand_in.places):
        places = ", ".join(stand_in.places)
        stand_in.uninstall()
        raise UsageError(
            f"{INTERFACE} does not hold the function that its layers call",
            where=places,
            hint="USE_BATCHED_RPA_KERNEL must be off; otherwise tpu-inference has changed",
        )
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
            function, f"{MODULES[kernel]}.{name}", leading=LEADING[kernel],
            known={*LEADING[kernel], *known},
            hint=f"rpa-tune supports {PACKAGE.title}",
        )  # fmt: skip
        found[kernel] = function
    return found


def _attend(dispatcher: Dispatcher, interpret: Any, *arrays: Any, **features: Any) -> Any:
    """One call of the engine, by our kernels."""
    known = {name: value for name, value in features.items() if name not in _IGNORED}
    return ragged_paged_attention(*arrays, plan=dispatcher, interpret=interpret, **known)


def _attend_latent(dispatcher: Dispatcher, interpret: Any, *arrays: Any, **features: Any) -> Any:
    """The same of its latent layers; our call takes and checks all that theirs does."""
    return mla_ragged_paged_attention(*arrays, plan=dispatcher, interpret=interpret, **features)


loaded_functions()
