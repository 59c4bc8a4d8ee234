"""The plug-in of vLLM on TPU: `--attention-backend rpa_tune` (tpu-inference 0.32.0).

vLLM calls `register` in every process, because `pyproject.toml` names it as an entry point of
`vllm.general_plugins`. Options come with the engine's own flag:

```
vllm serve MODEL --attention-backend rpa_tune --additional-config '{"rpa_tune": {"tables": "mine"}}'
```

Imports nothing of an engine before one asks.
"""

import functools
import importlib.util
import logging
from typing import Any

from rpa_tune.interop.vllm_options import log_with_vllm

NAME = "rpa_tune"
_MODULE = f"{__package__}.vllm_backend"
_DOOR = "tpu_inference.layers.common.attention_backend"
_log = logging.getLogger("rpa_tune.interop")


def register() -> None:
    """The entry point: makes the name known to an engine that has the door for it."""
    if importlib.util.find_spec("tpu_inference") is None:
        return  # vLLM on other devices
    try:
        door = importlib.import_module(_DOOR)
    except ImportError as error:
        _log.info(
            "--attention-backend %s: tpu-inference has no such backends (%s); "
            "rpa_tune.interop.intercept.install replaces its functions",
            NAME, error,
        )  # fmt: skip
        return
    log_with_vllm()
    door.register_attention_backend(
        NAME, attention=functools.partial(make), vllm_backend=f"{_MODULE}.RpaTuneBackend"
    )


def make(soft_cap: float | None = None, chunk: int | None = None) -> Any:
    """The engine's `AttentionBackend`: its runner and every trace of a layer make one.

    Args:
      soft_cap: Cap of a layer's logits, which the engine's own layer drops.
      chunk: Tokens of a layer's attention chunks, likewise.
    """
    backend = importlib.import_module("rpa_tune.interop.tpu_inference_backend")
    return backend.make(soft_cap, chunk)


def variant(soft_cap: float | None, chunk: int | None) -> str:
    """Name of the backend for layers of their own kind, registered when first asked for.

    The engine hands a layer's call only the name of its backend.
    """
    if not soft_cap and not chunk:
        return NAME
    name = f"{NAME}_cap_{soft_cap or 0}_chunk_{chunk or 0}".replace(".", "p").replace("-", "m")
    importlib.import_module(_DOOR).register_attention_backend(
        name,
        attention=functools.partial(make, soft_cap or None, chunk or None),
        # A path of its own, so that the plain name stays the one that vLLM finds by its path.
        vllm_backend=f"{_MODULE}.{name}",
    )
    return name
