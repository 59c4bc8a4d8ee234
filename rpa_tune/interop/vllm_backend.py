"""The vLLM side of `--attention-backend rpa_tune`: which class runs a model's attention layers.

vLLM imports this module by its path when the backend is chosen; it needs torch.
"""

from typing import Any

from tpu_inference.layers.vllm.backends.flash_attn import (
    PallasAttentionBackend,
    PallasAttentionBackendImpl,
)

from rpa_tune.interop import vllm_plugin


class RpaTuneImpl(PallasAttentionBackendImpl):  # type: ignore[misc]
    """A layer: the engine's own, which names our backend in its call.

    Attributes:
      attention_backend: Name of the backend of this layer. The engine's layer knows its soft cap
        and passes none, and knows nothing of chunks; both go with the name.
    """

    attention_backend = vllm_plugin.NAME

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See the engine's class."""
        super().__init__(*args, **kwargs)
        self.attention_backend = vllm_plugin.variant(self.logits_soft_cap, None)

    def forward(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """See the engine's class; `layer` of chunked local attention has `attention_chunk_size`."""
        if chunk := getattr(layer, "attention_chunk_size", None):
            self.attention_backend = vllm_plugin.variant(self.logits_soft_cap, chunk)
        return super().forward(layer, *args, **kwargs)


class RpaTuneBackend(PallasAttentionBackend):  # type: ignore[misc]
    """What vLLM asks for page sizes and layer classes."""

    @staticmethod
    def get_name() -> str:
        """As `--attention-backend` spells it, in upper case."""
        return vllm_plugin.NAME.upper()

    @staticmethod
    def get_impl_cls() -> type[RpaTuneImpl]:
        """The class of a layer."""
        return RpaTuneImpl
