"""Models → attention problems: which kinds of layers, and how big the arrays of a server are.

`load_model` takes a name or a `config.json`; `problems_for` and `problem_for` take the sizes from a
workload. Sweeps and commands call them, so that they mean the same kernel.
"""

import dataclasses
import difflib
import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.hf.read import read_config, read_file
from rpa_tune.model import LayerKind, Model
from rpa_tune.workload.workload import Workload

__all__ = ["LayerKind", "Model", "Share", "load_model", "load_models", "problem_for",
           "problems_for", "shares"]  # fmt: skip

# Servers compile their step for powers of two, of tokens and of sequences, from here on.
# Source: tpu-inference 0.32.0, MIN_NUM_SEQS of runner/tpu_runner.py.
_LEAST_BUCKET = 8


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
    """All models of `models.yaml` by name."""
    text = resources.files("rpa_tune").joinpath("models.yaml").read_text()
    models = {}
    for name, row in yaml.safe_load(text).items():
        source, checked = row.pop("source"), row.pop("checked")
        models[name] = read_config(
            row,
            name=name,
            source=f"config.json of {source} on Hugging Face",
            checked=checked,
            ask=False,
        )
    return models


def load_model(name: str) -> Model:
    """A model by name, or from the path of a Hugging Face `config.json`.

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
        return read_file(path)
    close = difflib.get_close_matches(name, models, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise UsageError(
        f"unknown model {name!r}: neither a known name nor a config.json",
        hint=f"{guess}known models: {', '.join(models)}",
    )


def problems_for(
    model: Model,
    *,
    workload: Workload,
    page_size: int,
    tp: int = 1,
    q_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
) -> list[Share]:
    """The attention problem of every kind of layers that is served, on one device.

    Tokens, sequences, pages of a sequence and pages of the cache are rounded up to powers of two,
    the buckets that serving engines compile for, so that near workloads share a kernel. A window
    or chunk as long as the longest context is none: such layers are of one kind with those
    without.

    Args:
      model: The whole model; divided by `tp` here.
      workload: Its largest batch sets the sizes.
      page_size: Tokens in one KV cache page.
      tp: Devices that share the heads.
      q_dtype: Dtype name of queries.
      kv_dtype: Dtype name of the KV cache.

    Raises:
      UsageError: Heads that do not divide, layers that no kernel family serves, or a size or
        dtype that no kernel has.
    """
    context = _context_tokens(workload, page_size)
    sizes = {
        "page_size": page_size,
        "max_num_tokens": layout.next_power_of_2(max(workload.max_num_tokens, _LEAST_BUCKET)),
        "max_num_seqs": layout.next_power_of_2(max(workload.max_num_seqs, _LEAST_BUCKET)),
        "pages_per_seq": context // page_size,
        "num_pages": layout.next_power_of_2(workload.num_pages(page_size)),
        "q_dtype": q_dtype,
        "kv_dtype": kv_dtype,
    }
    return shares(model.within(context), tp=tp, where=f"the problem of {model.name}", **sizes)


def shares(model: Model, *, tp: int, where: str, **fields: object) -> list[Share]:
    """The problem of every kind that is served, under its name in the whole model.

    Args:
      model: After `Model.within`.
      tp: Devices that share the heads.
      where: What to blame for a size that no kernel has.
      **fields: Fields of `Problem`.

    Raises:
      UsageError: Heads that do not divide, or a size or dtype that no kernel has.
    """
    try:
        return [
            Share(name=model.name_of(whole), kind=kind, problem=kind.problem(**fields))
            for whole, kind in zip(model.kinds, model.at_tp(tp).kinds, strict=True)
            if not kind.unserved
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
    tp: int = 1,
    q_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
) -> Problem:
    """The attention problem of one kind of layers on one device; see `problems_for`.

    Args:
      model: As there.
      workload: As there.
      page_size: As there.
      layers: Name of the kind; see `Model.pick`.
      windowed: Whether layers with a sliding window are meant; None for those without, unless
        there are none.
      tp: As there.
      q_dtype: As there.
      kv_dtype: As there.

    Raises:
      UsageError: As there, or layers that the model does not have.
    """
    context = _context_tokens(workload, page_size)
    kind = model.pick(layers, windowed, max_context_tokens=context)
    alone = dataclasses.replace(model, kinds=(kind,))
    (share,) = problems_for(
        alone, workload=workload, page_size=page_size, tp=tp, q_dtype=q_dtype, kv_dtype=kv_dtype
    )
    return share.problem


def _context_tokens(workload: Workload, page_size: int) -> int:
    """The longest context that a sequence's list of pages holds.

    Raises:
      UsageError: No size of a page.
    """
    if page_size < 1:
        raise UsageError(f"page_size={page_size} must be at least 1")
    pages = layout.cdiv(workload.max_context_tokens, page_size)
    return layout.next_power_of_2(pages) * page_size
