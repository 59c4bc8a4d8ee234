"""Options that several commands share: a candidate, a batch, where compiles are kept."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rpa_kernels import FAMILIES, load_family
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.layout import KV_DTYPES, Q_DTYPES
from rpa_kernels.problem import Problem
from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.workload.workload import WeightedBatch, Workload

Command = TypeVar("Command", bound=Callable[..., None])

_OPTIONS = (
    click.option("--chip", required=True, help="Chip to compile for: v4, v5e, v5p, v6e or v7x."),
    click.option("--family", required=True, type=click.Choice(FAMILIES), help="Kernel family."),
    click.option("--model", required=True, help="Model name, or the path of a config.json."),
    click.option("--config", "config_text", default="", metavar="K=V,...",
                 help="Fields that differ from the family's own choice."),
    click.option("--tp", default=1, show_default=True, help="Devices that share the heads."),
    click.option("--page-size", default=128, show_default=True, help="Tokens in a KV cache page."),
    click.option("--q-dtype", default="bfloat16", show_default=True, type=click.Choice(Q_DTYPES),
                 help="Dtype of queries."),
    click.option("--kv-dtype", default="bfloat16", show_default=True, type=click.Choice(KV_DTYPES),
                 help="Dtype of the KV cache."),
    click.option("--layers",
                 help="Kind of layers of a model that has several, such as window-1024."),
    click.option("--windowed/--not-windowed", default=None,
                 help="A layer with the model's sliding window, or one without."),
)  # fmt: skip

cache_option = click.option(
    "--cache", type=click.Path(path_type=Path), default=default_cache_dir,
    help="Folder of compiles; default: the user's cache folder.",
)  # fmt: skip

batch_option = click.option(
    "--batch", "batch_file", type=click.Path(path_type=Path),
    help='One batch instead: JSON {"q_lens": [..], "kv_lens": [..], "num_decode": n}.',
)  # fmt: skip


def candidate_options(command: Command) -> Command:
    """Adds the options that name a family, a problem, a config and a chip."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_config(text: str) -> dict[str, int]:
    """Reads `k=v,...`.

    Raises:
      UsageError: A part that is not `name=integer`, or a name twice.
    """
    fields: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if not value.strip().isdigit() or name.strip() in fields:
            raise UsageError(
                f"{part!r} is not a new name=integer", where="--config", hint="bkv_sz=512,bq_sz=8"
            )
        fields[name.strip()] = int(value)
    return fields


def make_config(family: str, problem: Problem, chip: str, fields: dict[str, int]) -> Any:
    """The family's own choice with some fields changed; all of them, if it has no choice.

    Raises:
      UsageError: An unknown field, or a missing one where the family has no choice of its own.
    """
    record = load_family(family)
    known = list(record.config_type.__dataclass_fields__)
    if unknown := [name for name in fields if name not in known]:
        raise UsageError(
            f"{unknown[0]!r} is not a field of a {family} config",
            where="--config",
            hint=f"fields: {', '.join(known)}",
        )
    default = record.default_config(problem, load_chip(chip).target)
    if not isinstance(default, Infeasible):
        return dataclasses.replace(default, **fields)
    if missing := [name for name in known if name not in fields]:
        raise UsageError(
            f"{family} has no config of its own here ({default}); {', '.join(missing)} missing",
            where="--config",
        )
    return record.config_from_dict(fields)


def read_batch(path: Path) -> Workload:
    """A workload of one batch with given lengths.

    Raises:
      UsageError: The file does not describe a batch.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        batch = Batch(
            q_lens=tuple(map(int, data["q_lens"])),
            kv_lens=tuple(map(int, data["kv_lens"])),
            num_decode=int(data["num_decode"]),
            num_prefill=int(data.get("num_prefill", 0)),
        )
        return Workload(
            name=path.name, source=str(path), batches=(WeightedBatch(batch=batch, weight=1.0),)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a batch: {type(error).__name__}: {error}",
            where=str(path),
            hint='{"q_lens": [1, 1, 64], "kv_lens": [700, 90, 64], "num_decode": 2}',
        ) from error
