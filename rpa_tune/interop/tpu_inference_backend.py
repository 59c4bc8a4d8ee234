"""The attention backend that tpu-inference 0.32.0 runs under `--attention-backend rpa_tune`.

It shards the call over KV heads and data as the engine's own backend does, and serves what that one
refuses too: sinks with any head size, and heads of 64 without a causal mask or with shared KV.
Latent attention and context parallelism stay the engine's.

The engine's flax models do not ask for a backend: they call its v3 function, whatever
`--attention-backend` says. So that function is replaced in this process as well.

Imports the engine; `vllm_plugin.py` does not.
"""

import functools
import importlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from tpu_inference.layers.common.attention_backend import AttentionBackend, RPAAttentionBackend
from tpu_inference.layers.common.attention_interface import rpa_block_size_kwargs
from tpu_inference.layers.common.sharding import ShardingAxisName
from tpu_inference.utils import get_mesh_shape_product

from rpa_kernels import layout
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.interop import intercept
from rpa_tune.interop.engine_call import Served
from rpa_tune.interop.guard import Guard
from rpa_tune.interop.public.tpu_inference.functions import MODULES
from rpa_tune.interop.vllm_options import Options, log_with_vllm, options_of

_log = logging.getLogger("rpa_tune.interop")


class RpaTuneAttention(AttentionBackend):  # type: ignore[misc]
    """Our kernels behind the engine's interface.

    Attributes:
      name: What `--attention-backend` says.
      served: Runs calls.
      soft_cap: Cap of the logits of this backend's layers, if the call names none.
      chunk: Tokens of their attention chunks, or None.
    """

    name = "rpa_tune"

    def __init__(
        self, served: Served, soft_cap: float | None = None, chunk: int | None = None
    ) -> None:
        """Keeps what runs calls, and what the engine's call does not say of these layers."""
        self.served = served
        self.soft_cap = soft_cap
        self.chunk = chunk

    def get_kv_cache_shape(
        self, total_num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, kv_dtype: Any
    ) -> tuple[int, ...]:
        """The shape of one shard's cache, which is that of the engine's v3 and hd64 functions."""
        return layout.kv_cache_shape(
            num_pages=total_num_pages, page_size=page_size, num_kv_heads=num_kv_heads,
            head_dim=head_dim, kv_dtype=jnp.dtype(kv_dtype).name,
        )  # fmt: skip

    def attention(
        self, kv_cache: Any, q: Any, k: Any, v: Any, md: Any, shared_md: Any, mesh: Any,
        **features: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        """(kv_cache, output) of the engine's `attention`.

        Args:
          kv_cache: [pages, page size, packed heads, packing, padded head_dim], donated.
          q: [tokens, num_q_heads, head_dim].
          k: [tokens, num_kv_heads, head_dim] in the cache's dtype.
          v: The same.
          md: The layer's metadata: `block_tables`.
          shared_md: `seq_lens`, `query_start_loc` and `request_distribution`.
          mesh: Where to run.
          features: Keywords of the engine's interface.
        """
        if any(mesh.shape.get(axis, 1) > 1 for axis in ("dcp", "pcp")):
            return RPAAttentionBackend().attention(  # type: ignore[no-any-return]
                kv_cache, q, k, v, md, shared_md, mesh, **features
            )
        heads, data = ShardingAxisName.ATTN_HEAD, ShardingAxisName.ATTN_DATA
        num_shards = get_mesh_shape_product(mesh, heads)
        if k.shape[1] < num_shards:
            k, v = (jnp.repeat(x, num_shards // x.shape[1], axis=1) for x in (k, v))
        sinks = features["sinks"]
        arrays = [
            q, k, v, kv_cache, shared_md.seq_lens, md.block_tables, shared_md.query_start_loc,
            shared_md.request_distribution,
        ]  # fmt: skip
        new, cache = PartitionSpec(data, heads, None), PartitionSpec(data, None, heads, None, None)
        specs = [new, new, new, cache, *[PartitionSpec(data)] * 4]
        if sinks is not None:
            arrays.append(sinks.astype(jnp.float32))
            specs.append(PartitionSpec(heads))
        run = jax.shard_map(
            functools.partial(self._on_a_device, features), mesh=mesh, in_specs=tuple(specs),
            out_specs=(new, cache), check_vma=False,
        )  # fmt: skip
        output, kv_cache = run(*arrays)
        return kv_cache, output

    def _on_a_device(self, features: dict[str, Any], *arrays: Any) -> tuple[Any, ...]:
        said = self._features(features)
        return self.served.attend(
            arrays, said, theirs=self._theirs(said, arrays),
            query_size=features["decode_query_size"],
        )  # fmt: skip

    def _features(self, features: dict[str, Any]) -> dict[str, Any]:
        """Keywords of our call.

        What the engine's interface calls `attention_chunk_size` is a sliding window: its layers
        pass theirs under this name, and its own backend takes it for one.
        """
        names = ("sm_scale", "q_scale", "k_scale", "v_scale", "update_kv_cache", "use_causal_mask")
        return {
            **{name: features[name] for name in names},
            "sliding_window": features["attention_chunk_size"],
            "attention_chunk_size": self.chunk,
            "soft_cap": features["attn_logits_soft_cap"] or self.soft_cap,
        }

    def _theirs(self, said: dict[str, Any], arrays: tuple[Any, ...]) -> Any:
        """The engine's function for a call on one device, or None where it has none."""
        functions = _originals()
        is_64, has_sinks = arrays[0].shape[2] == layout.LANES // 2, len(arrays) > 8
        is_plain = said["update_kv_cache"] and said["use_causal_mask"]
        if said["attention_chunk_size"] or (not is_plain if is_64 else has_sinks):
            return None
        dropped = {"attention_chunk_size"}
        if is_64:
            dropped |= {"update_kv_cache", "use_causal_mask"}
        kept = {name: value for name, value in said.items() if name not in dropped}
        # Blocks that the operator gave the engine's kernel (`RPA_V3_*_BLOCK_SIZES`).
        blocks = {} if is_64 else rpa_block_size_kwargs()
        return functools.partial(functions["hd64" if is_64 else "v3"], **kept, **blocks)


_made: dict[Options, Served] = {}


def make(soft_cap: float | None, chunk: int | None) -> RpaTuneAttention:
    """A backend with the options of the engine that is being set up, or was last.

    Raises:
      UsageError: What the options say cannot be.
    """
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    if config is not None or not _made:
        extra = getattr(config, "additional_config", None) or {}
        options = options_of(extra.get("rpa_tune"))
        if options not in _made:
            served = _serve(options)
            _made.clear()
            _made[options] = served
    (served,) = _made.values()
    return RpaTuneAttention(served, soft_cap, chunk)


@functools.cache
def _originals() -> dict[str, Any]:
    """The engine's v3 and hd64 functions as they were before any was replaced."""
    for kernel in ("v3", "hd64"):
        importlib.import_module(MODULES[kernel])
    return intercept.loaded_functions()


_flax: list[Any] = []


def _serve(options: Options) -> Served:
    log_with_vllm()
    _originals()
    interpret = None
    if options.interpret:
        from jax.experimental.pallas import tpu as pltpu

        interpret = pltpu.InterpretParams()
    served = Served(
        dispatcher=load_dispatcher(
            options.chip, options.tables, options.on_miss, options.artifact  # type: ignore[arg-type]
        ),
        interpret=interpret,
        guard=Guard(
            fallback=options.fallback, shadow_calls=options.shadow_calls,
            shadow_share=options.shadow_share,
        ),
    )  # fmt: skip
    while _flax:
        _flax.pop().uninstall()
    _flax.append(intercept.install(served.dispatcher, interpret=interpret, guard=served.guard))
    _log.info(
        "--attention-backend rpa_tune: %s, %d rows; models of the engine's own (flax) are served "
        "by replacing its functions",
        served.dispatcher.chip.name, len(list(served.dispatcher.tables)),
    )  # fmt: skip
    return served


def stand_in() -> Any:
    """What replaced the functions that flax models call, or None before a backend was made."""
    return _flax[-1] if _flax else None
