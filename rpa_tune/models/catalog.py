"""Models → attention problems: which kinds of layers, and how big the arrays of a server are.

`load_model` takes a name or a `config.json`; `problems_for` and `problem_for` take the sizes from a
workload. Sweeps and commands call them, so that they mean the same kernel.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rpa_kernels import layout
from rpa_kernels.ints import cdiv
from rpa_kernels.names import did_you_mean, find_name
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.hf.read import read_config, read_file
from rpa_tune.models.buckets import TPU_INFERENCE, latent_fields, shape_of
from rpa_tune.models.flags import read_model
from rpa_tune.models.model import LayerKind, Model
from rpa_tune.workload.workload import Workload

__all__ = ["LayerKind", "Model", "Share", "load_model", "load_models", "problem_for",
           "problems_for", "shares"]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One kind of layers on one device, and what a kernel is compiled for.

    Attributes:
      name: What tells the kind from the model's others.
      kind: The layers, their heads divided.
      problem: Their problem.
    """

    name: str
    kind: LayerKind
    problem: Problem


@functools.cache
def load_models() -> dict[str, Model]:
    """The models of `catalog.yaml` that a kernel family serves, in whole or in part, by name."""
    models = {}
    for name in _rows():
        try:
            models[name] = _read_row(name)
        except UsageError:
            continue  # `load_model` says why
    return models


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    """The rows of `catalog.yaml`."""
    text = resources.files("rpa_tune.models").joinpath("catalog.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def _read_row(name: str) -> Model:
    """The model of a row.

    Raises:
      UsageError: No kernel family serves its attention.
    """
    row = dict(_rows()[name])
    source = f"config.json of {row.pop('source')} on Hugging Face"
    try:
        return read_config(row, name=name, source=source, checked=row.pop("checked"), ask=False)
    except UsageError as error:
        error.where = f"the model {name}"
        raise


def load_model(name: str | Path) -> Model:
    """A model by name or repository, or from the path of a Hugging Face `config.json`.

    Raises:
      UsageError: Neither name nor path, no such model, one that no kernel family serves, or a
        file that does not describe one.
    """
    models, name = load_models(), read_model(name)
    if name in models:
        return models[name]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" and path.is_file():
        return read_file(path)
    if (found := model_name(name)) in models:
        return models[found]
    if found in _rows():
        return _read_row(found)
    raise UsageError(
        f"unknown model {name!r}: neither a known name nor a config.json",
        hint=did_you_mean(name, _rows(), _repositories(), what="models"),
    )


def load_within(name: str | Path, max_context_tokens: int) -> Model:
    """A model for contexts up to a length, as `load_model` and `Model.within`.

    Raises:
      UsageError: As both.
    """
    if name in load_models():
        return _known_within(str(name), max_context_tokens)
    return load_model(name).within(max_context_tokens)


@functools.cache
def _known_within(name: str, max_context_tokens: int) -> Model:
    return load_models()[name].within(max_context_tokens)


def model_name(text: str) -> str:
    """The built-in name that `text` spells; `text` itself if it is a path or spells none.

    A model is spelt by its repository on Hugging Face, too (`Qwen/Qwen3-32B`, `Qwen3-32B`), with
    or without what tuning for chat adds to that name.
    """
    if Path(text).exists():
        return text
    return find_name(_untuned(text), _rows(), _repositories()) or text


@functools.cache
def _repositories() -> dict[str, str]:
    """Repository, with and without its owner -> model."""
    return {
        _untuned(spelling): name
        for name, row in _rows().items()
        for spelling in (row["source"], row["source"].rpartition("/")[2])
    }


def _untuned(text: str) -> str:
    """A repository's name without what says how the model was tuned: its attention is the same."""
    return re.sub(r"(?i)[-_](?:instruct|it|chat|base|pt)(?=[-_]|$)", "", text)


def problems_for(
    model: Model,
    *,
    workload: Workload,
    page_size: int,
    tp: int = 1,
    q_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    kv_layout: str = layout.HEAD_ALONG_SUBLANE,
    engine: str = TPU_INFERENCE,
) -> list[Share]:
    """The attention problem of every kind of layers that is served, on one device.

    Tokens and sequences are those of the server's shape that the largest batch is padded to
    (`buckets.py`); pages of a sequence and of the cache are rounded up to powers of two, so that
    near workloads share a kernel. A window or chunk as long as the longest context is none: such
    layers are of one kind with those without.

    Args:
      model: The whole model; divided by `tp` here.
      workload: Its largest batch sets the sizes.
      page_size: Tokens in one KV cache page.
      tp: Devices that share the heads.
      q_dtype: Dtype name of queries.
      kv_dtype: Dtype name of the KV cache.
      kv_layout: Its layout.
      engine: Whose rules hold for layers with latents; see `shares`.

    Raises:
      UsageError: Heads that do not divide, layers that no kernel family serves, or a size or
        dtype that no kernel has.
    """
    context = _context_tokens(workload, page_size)
    shape = shape_of(workload.max_num_tokens, workload.max_num_seqs)
    sizes = {
        "page_size": page_size,
        "max_num_tokens": shape.num_tokens,
        "max_num_seqs": shape.num_seqs,
        "pages_per_seq": context // page_size,
        "num_pages": layout.next_power_of_2(workload.num_pages(page_size)),
        "q_dtype": q_dtype,
        "kv_dtype": kv_dtype,
        "kv_layout": kv_layout,
        "decode_query_size": workload.decode_query_size,
    }
    where = f"the problem of {model.name}"
    return shares(model.within(context), tp=tp, where=where, engine=engine, **sizes)


def shares(model: Model, *, tp: int, where: str, engine: str, **fields: Any) -> list[Share]:
    """The problem of every kind that is served, under its name in the whole model.

    tpu-inference 0.32.0 refuses a model with latents unless attention is data-parallel, and then
    gives each of the `tp` devices all heads of its share of the sequences (`TpuPlatform`,
    `ShardingConfigManager.from_vllm_config`); sglang-jax shares the heads, on its main branch: the
    wheel 0.0.2 has no kernel for latents.

    Args:
      model: After `Model.within`.
      tp: Devices that share the heads.
      where: What to blame for a size that no kernel has.
      engine: Whose rules hold for layers with latents.
      **fields: Fields of `Problem`.

    Raises:
      UsageError: Heads that do not divide, or a size or dtype that no kernel has.
    """
    latent = latent_fields(engine, str(fields.get("kv_dtype", "")))
    device = model.at_tp(tp, splits_latents=engine != TPU_INFERENCE)
    try:
        return [
            Share(
                name=model.name_of(whole),
                kind=kind,
                problem=kind.problem(**fields | (latent if kind.is_latent else {})),
            )
            for whole, kind in zip(model.kinds, device.kinds, strict=True)
            if not kind.refusal
        ]
    except ValueError as error:
        raise UsageError(str(error), where=where) from error


def problem_for(
    model: Model,
    *,
    workload: Workload,
    page_size: int,
    layers: str | None = None,
    windowed: bool | None = None,
    **shape: Any,
) -> Problem:
    """The attention problem of one kind of layers on one device; see `problems_for`.

    Args:
      model: As there.
      workload: As there.
      page_size: As there.
      layers: Name of the kind; see `Model.pick`.
      windowed: Whether layers with a sliding window are meant; None for those without, unless
        there are none.
      **shape: `tp`, `q_dtype`, `kv_dtype`, `kv_layout` and `engine`, as there.

    Raises:
      UsageError: As there, or layers that the model does not have.
    """
    kind = model.pick(layers, windowed)
    alone = dataclasses.replace(model, kinds=(kind,))
    (share,) = problems_for(alone, workload=workload, page_size=page_size, **shape)
    return share.problem


def _context_tokens(workload: Workload, page_size: int) -> int:
    """The longest context that a sequence's list of pages holds.

    Raises:
      UsageError: No size of a page.
    """
    if page_size < 1:
        raise UsageError(f"page_size={page_size} must be at least 1")
    pages = cdiv(workload.max_context_tokens, page_size)
    return layout.next_power_of_2(pages) * page_size
