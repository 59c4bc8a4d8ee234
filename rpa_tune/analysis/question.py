"""One candidate and the batches that launch it, from what a person calls them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_kernels import FAMILIES
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.names import did_you_mean, find_name
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Family
from rpa_tune.families.registry import ALL_FAMILIES, load_family
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.models.catalog import Model, load_model, problem_for
from rpa_tune.models.flags import read_flag
from rpa_tune.ranges import FIELD
from rpa_tune.workload.workload import WeightedBatch, Workload, load_workload

# A preset, a file, a mapping (docs/workloads.md), one batch, or weighted ones.
AnyWorkload = str | Path | Mapping[str, Any] | Batch | Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One candidate, resolved.

    Attributes:
      candidate: What to evaluate.
      workload: The batches that launch its family.
      model: As the person said it.
      loaded: The whole model.
      is_default: Whether the config is the family's own choice.
      given: What `make_question` was given, to ask for a neighbour.
    """

    candidate: Candidate
    workload: Workload
    model: str
    loaded: Model
    is_default: bool
    given: Mapping[str, Any]


def make_question(
    *,
    chip: str,
    family: str,
    model: str,
    workload: AnyWorkload,
    config: Mapping[str, int] | None = None,
    page_size: int = 128,
    cache: Path | None = None,
    **shape: Any,
) -> Question:
    """A candidate and its workload.

    Args:
      chip: Chip name.
      family: Family name.
      model: Model name, or path of a config.json.
      workload: What is launched; see `AnyWorkload`.
      config: Fields that override the family's default config.
      page_size: Tokens in a KV cache page.
      cache: Where a public family's package is kept; the user's cache folder if None.
      **shape: `tp`, `q_dtype`, `kv_dtype`, `kv_layout`, `layers` and `windowed` of `problem_for`.

    Raises:
      UsageError: Whatever is wrong with them.
      TraceError: The workload is a bad file.
    """
    page_size = read_flag("page_size", page_size)
    shape |= {name: read_flag(name, shape[name]) for name in ("tp",) if name in shape}
    tpu, kernel = load_chip(chip), find_family(family, ALL_FAMILIES)
    loaded = load_model(model)
    # What the cache's shape forbids is said before a trace is served, which may take a minute.
    least = problem_for(loaded, workload=_ONE_TOKEN, page_size=page_size, **shape)
    tpu.require_room(page_bytes=least.page_bytes, num_seqs=least.max_num_seqs)
    batches = as_workload(workload, page_size=page_size)
    problem = problem_for(loaded, workload=batches, page_size=page_size, **shape)
    try:
        own = batches.for_family(*kernel.slots)
    except ValueError as error:
        raise UsageError(str(error), hint="another --family, or another --workload") from error
    kernel.fetch(default_cache_dir() if cache is None else cache)
    made = make_config(kernel, problem, tpu, config or {})
    candidate = Candidate(
        family=kernel, problem=problem, config=made, chip=tpu, workload=own.digest
    )
    given = {
        "chip": tpu.name, "family": kernel.name, "model": model, "workload": workload,
        "config": config, "page_size": page_size, "cache": cache, **shape,
    }  # fmt: skip
    return Question(
        candidate=candidate, workload=own, model=model, loaded=loaded, is_default=not config,
        given=given,
    )  # fmt: skip


def find_family(name: str, names: Sequence[str] = FAMILIES) -> Family:
    """A family, however it is spelt.

    Args:
      name: What a person calls it.
      names: Those that may be meant; ours if not given.

    Raises:
      UsageError: None of them, or one that cannot be compiled with what is installed.
    """
    found = find_name(name, names)
    if found is None:
        raise UsageError(
            f"{name!r} is not one of {', '.join(names)}",
            where="family",
            hint=did_you_mean(name, names),
        )
    family = load_family(found)
    if reason := family.unavailable:
        raise UsageError(f"{found} cannot be compiled here: {reason}", where="family")
    return family


def as_workload(workload: AnyWorkload, *, page_size: int) -> Workload:
    """Weighted batches, from what stands for them.

    Raises:
      UsageError: An unknown name, or a bad mapping.
      TraceError: A bad file.
    """
    if isinstance(workload, Workload):
        return workload
    if isinstance(workload, Batch):
        return one_batch(workload, name="one batch", source="given")
    spec = str(workload) if isinstance(workload, Path) else workload
    return load_workload(spec, page_size=page_size)


def one_batch(batch: Batch, *, name: str, source: str) -> Workload:
    """A workload of one batch."""
    return Workload(name=name, source=source, batches=(WeightedBatch(batch=batch, weight=1.0),))


_ONE_TOKEN = one_batch(
    Batch(q_lens=(1,), kv_lens=(1,), num_decode=1), name="one token", source="made up"
)


def make_config(family: Family, problem: Problem, chip: Chip, fields: Mapping[str, int]) -> Any:
    """The family's own choice with some fields changed; all of them, if it has no choice.

    Raises:
      UsageError: An unknown field, a number that no field has, a missing field where the family
        has no choice of its own, or pages that do not fit the chip.
    """
    chip.require_room(page_bytes=problem.page_bytes, num_seqs=problem.max_num_seqs)
    if not isinstance(fields, Mapping):
        raise UsageError(f"config={fields!r} must be a mapping of fields", where="--config")
    known = list(family.config_type.__dataclass_fields__)
    if unknown := [name for name in fields if name not in known]:
        raise UsageError(
            f"{unknown[0]!r} is not a field of a {family.name} config",
            where="--config",
            hint=f"fields: {', '.join(known)}",
        )
    for name, value in fields.items():
        FIELD.check(value, name, where="--config")
    default = family.default_config(problem, chip.target)
    if not isinstance(default, Infeasible):
        return dataclasses.replace(default, **fields)
    if missing := [name for name in known if name not in fields]:
        raise UsageError(
            f"{family.name} has no default config here ({default}); {', '.join(missing)} missing",
            where="--config",
        )
    return family.config_from_dict(dict(fields))
