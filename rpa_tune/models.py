"""Models → attention problems: whose heads, and how big the arrays of a server are.

`Model.problem` is the one place that turns a model into a `Problem`. `problem_for` takes the sizes
from a workload; sweeps and commands both call it, so that they mean the same kernel.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rpa_kernels import layout
from rpa_kernels.names import did_you_mean, find_name
from rpa_kernels.problem import Problem
from rpa_tune.buckets import shape_of
from rpa_tune.errors import UsageError
from rpa_tune.workload.workload import Workload

WINDOWED_LAYERS = ("none", "some", "all")

# What a `config.json` may leave out, by its model type.
# Source: github.com/huggingface/transformers, src/transformers/models/*/configuration_*.py:
# gemma2 and qwen2 at 008e574, gemma3 at d98ac17, gpt_oss at 02b8f42.
_GEMMA = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 50.0},
    "gemma3_text": _GEMMA,
    "gpt_oss": {
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128,
    },
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False},
    "qwen3_moe": {"use_sliding_window": False},
}  # fmt: skip
# Types whose layers take turns with and without the window.
_TAKE_TURNS = ("gemma2", "gemma3_text", "gpt_oss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What attention needs to know of a model.

    Attributes:
      name: Name in `models.yaml`, or the path of a `config.json`.
      source: Where the numbers are from.
      checked: Where else the same numbers were read; empty for a file.
      num_q_heads: Query heads, of the model or of one device after `at_tp`.
      num_kv_heads: KV heads, likewise.
      head_dim: Head size in elements.
      sliding_window_tokens: Window of the layers that have one, or None.
      windowed_layers: Whether `none`, `some` or `all` layers use the window.
      soft_cap: Cap on attention logits, or None.
      has_sinks: Whether heads have a sink logit.
      softmax_scale_base: Logits are scaled by its inverse square root; None for `head_dim`.
    """

    name: str
    source: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window_tokens: int | None = None
    windowed_layers: str = "none"
    soft_cap: float | None = None
    has_sinks: bool = False
    softmax_scale_base: float | None = None
    checked: str = ""

    def __post_init__(self) -> None:
        """Refuses a window without layers, and layers without a window.

        Raises:
          ValueError: The two fields disagree.
        """
        if self.windowed_layers not in WINDOWED_LAYERS:
            raise ValueError(f"windowed_layers={self.windowed_layers!r} not in {WINDOWED_LAYERS}")
        if (self.windowed_layers == "none") != (self.sliding_window_tokens is None):
            raise ValueError(f"{self.name}: a window needs layers, and layers need a window")

    def problem(self, *, windowed: bool, **others: Any) -> Problem:
        """The attention of one of its layers.

        Args:
          windowed: Whether the layer has the window.
          **others: Sizes, dtypes and features, as fields of `Problem`; the model's own may be
            given too, and win.

        Raises:
          ValueError: A size or dtype that no kernel has.
        """
        own = {
            "num_q_heads": self.num_q_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "sm_scale": (self.softmax_scale_base or self.head_dim) ** -0.5,
            "sliding_window": self.sliding_window_tokens if windowed else None,
            "soft_cap": self.soft_cap,
            "has_sinks": self.has_sinks,
        }
        return Problem(**own | others)

    def at_tp(self, tp: int) -> "Model":
        """The share of one device under tensor parallelism; KV heads are repeated when few.

        Raises:
          UsageError: Heads do not divide.
        """
        too_many = tp > self.num_kv_heads
        kv_fits = tp % self.num_kv_heads if too_many else self.num_kv_heads % tp if tp > 0 else 1
        if tp < 1 or self.num_q_heads % tp or kv_fits:
            raise UsageError(
                f"{self.name} cannot run at tp={tp}: {self.num_q_heads} query heads and "
                f"{self.num_kv_heads} KV heads must divide evenly",
                hint=f"use one of {[n for n in _divisors(self.num_q_heads) if self._allows(n)]}",
            )
        return dataclasses.replace(
            self,
            num_q_heads=self.num_q_heads // tp,
            num_kv_heads=1 if too_many else self.num_kv_heads // tp,
        )

    def _allows(self, tp: int) -> bool:
        return self.num_kv_heads % tp == 0 or tp % self.num_kv_heads == 0


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@functools.cache
def load_models() -> dict[str, Model]:
    """All models of `models.yaml` by name."""
    text = resources.files("rpa_tune").joinpath("models.yaml").read_text()
    return {
        name: Model(
            name=name, **{**row, "source": f"config.json of {row['source']} on Hugging Face"}
        )
        for name, row in yaml.safe_load(text).items()
    }


def load_model(name: str) -> Model:
    """A model by name or repository, or from the path of a Hugging Face `config.json`.

    Raises:
      UsageError: No such model, or a file that does not describe one.
    """
    models = load_models()
    if name in models:
        return models[name]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" and path.is_file():
        return _read_config(path)
    if (found := model_name(name)) in models:
        return models[found]
    raise UsageError(
        f"unknown model {name!r}: neither a known name nor a config.json",
        hint=did_you_mean(name, models, _repositories(), what="models"),
    )


def model_name(text: str) -> str:
    """The built-in name that `text` spells; `text` itself if it is a path or spells none.

    A model is spelt by its repository on Hugging Face, too (`Qwen/Qwen3-32B`, `Qwen3-32B`), with
    or without what tuning for chat adds to that name.
    """
    if Path(text).exists():
        return text
    return find_name(_untuned(text), load_models(), _repositories()) or text


@functools.cache
def _repositories() -> dict[str, str]:
    """Repository, with and without its owner -> model."""
    rows = yaml.safe_load(resources.files("rpa_tune").joinpath("models.yaml").read_text())
    return {
        _untuned(spelling): name
        for name, row in rows.items()
        for spelling in (row["source"], row["source"].rpartition("/")[2])
    }


def _untuned(text: str) -> str:
    """A repository's name without what says how the model was tuned: its attention is the same."""
    return re.sub(r"(?i)[-_](?:instruct|it|chat|base|pt)(?=[-_]|$)", "", text)


def problem_for(
    model: Model,
    *,
    workload: Workload,
    page_size: int,
    tp: int = 1,
    q_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    windowed: bool | None = None,
) -> Problem:
    """The attention problem of one layer of a model on one device.

    Tokens and sequences are those of the server's shape that the largest batch is padded to
    (`buckets.py`); pages of a sequence and of the cache are rounded up to powers of two, so that
    near workloads share a kernel.

    Args:
      model: The whole model; divided by `tp` here.
      workload: Its largest batch sets the sizes.
      page_size: Tokens in one KV cache page.
      tp: Devices that share the heads.
      q_dtype: Dtype name of queries.
      kv_dtype: Dtype name of the KV cache.
      windowed: Whether a layer with a sliding window is meant; None for one without, unless all
        layers have one.

    Raises:
      UsageError: Heads that do not divide, a layer that the model does not have, or a size or
        dtype that no kernel has.
    """
    if windowed is None:
        windowed = model.windowed_layers == "all"
    if model.windowed_layers == ("none" if windowed else "all"):
        has = "no sliding window" if windowed else "a sliding window in all layers"
        raise UsageError(f"{model.name} has {has}, but windowed={windowed} was asked for")
    if page_size < 1:
        raise UsageError(f"page_size={page_size} must be at least 1")
    pages_per_seq = layout.cdiv(workload.max_context_tokens, page_size)
    shape = shape_of(workload.max_num_tokens, workload.max_num_seqs)
    try:
        return model.at_tp(tp).problem(
            windowed=windowed,
            page_size=page_size,
            max_num_tokens=shape.num_tokens,
            max_num_seqs=shape.num_seqs,
            pages_per_seq=layout.next_power_of_2(pages_per_seq),
            num_pages=layout.next_power_of_2(workload.num_pages(page_size)),
            q_dtype=q_dtype,
            kv_dtype=kv_dtype,
        )
    except ValueError as error:
        raise UsageError(str(error), where=f"the problem of {model.name}") from error


def _read_config(path: Path) -> Model:
    """A model from the `config.json` that Hugging Face repositories carry."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(whole, dict):
            raise TypeError(f"a JSON {type(whole).__name__}, not an object")
        config = whole.get("text_config", whole)  # multimodal models nest the language model
        config = {**_LEFT_OUT.get(config.get("model_type", ""), {}), **config}
        if config.get("kv_lora_rank"):
            raise UsageError("multi-head latent attention has no family yet", where=str(path))
        num_q_heads = config["num_attention_heads"]
        window = config.get("sliding_window")
        layers = _windowed_layers(config) if window else "none"
        return Model(
            name=str(path),
            source=f"{path.name} of {whole.get('_name_or_path') or path.parent.name}",
            num_q_heads=num_q_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_q_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_q_heads,
            sliding_window_tokens=None if layers == "none" else window,
            windowed_layers=layers,
            soft_cap=config.get("attn_logit_softcapping"),
            has_sinks=config.get("model_type") == "gpt_oss",
            softmax_scale_base=config.get("query_pre_attn_scalar"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"not the config.json of a model: {reason}",
            where=str(path),
            hint="num_attention_heads and head_dim (or hidden_size) are needed, and "
            "num_key_value_heads where they are fewer",
        ) from error


def _windowed_layers(config: Mapping[str, Any]) -> str:
    """Which layers of a model with a window use it."""
    if not config.get("use_sliding_window", True):
        return "none"
    if kinds := config.get("layer_types"):
        share = sum(kind == "sliding_attention" for kind in kinds) / len(kinds)
        return "all" if share == 1 else "some" if share else "none"
    # Qwen: the first layers have none.
    first, num_layers = config.get("max_window_layers"), config.get("num_hidden_layers")
    if first is not None and num_layers is not None:
        return "none" if first >= num_layers else "some" if first > 0 else "all"
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    return "some" if pattern or config.get("model_type") in _TAKE_TURNS else "all"
