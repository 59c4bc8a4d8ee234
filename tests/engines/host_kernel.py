"""Runs tpu-inference's own attention kernel on a CPU, called from a step that is compiled.

The TPU interpreter refuses that kernel (it reshapes and bitcasts references), so each call is a
callback that runs the kernel's body in Python, on NumPy arrays.
"""

import functools
import importlib
from typing import Any

from interpret.eager_pallas import eager_pallas

from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.functions import MODULES, pretend
from rpa_tune.interop.stand_in import StandIn

CALLS: list[tuple[list[int], Any]] = []  # new tokens of every sequence, blocks for mixed ones


def use_host_kernel() -> None:
    """Puts it in the place of the engine's v3 function, wherever that is bound."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import io_callback

    module = importlib.import_module(MODULES["v3"])
    original, chip = module.ragged_paged_attention, load_chip("v6e")

    def on_host(features: dict[str, Any], *arrays: Any) -> tuple[Any, ...]:
        given = [np.asarray(array) for array in arrays]
        q_lens = np.diff(given[6][: int(given[7][2]) + 1]).tolist()
        CALLS.append((q_lens, features.get("m_block_sizes")))
        with pretend(chip, module), eager_pallas():
            results = original(*map(jnp.asarray, given), **features)
        return tuple(np.asarray(result) for result in results)

    def called(*arrays: Any, **features: Any) -> tuple[Any, ...]:
        shapes = tuple(jax.ShapeDtypeStruct(arrays[i].shape, arrays[i].dtype) for i in (0, 3))
        run = functools.partial(on_host, features)
        return tuple(io_callback(run, shapes, *arrays))

    StandIn().replace(original, called, "tpu_inference")
