"""Options that several commands share: a candidate, a batch, where compiles are kept."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from rpa_kernels import FAMILIES
from rpa_kernels.dtypes import OTHER_NAMES as OTHER_DTYPE_NAMES
from rpa_kernels.layout import KV_DTYPES, KV_LAYOUTS, Q_DTYPES
from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.analysis.question import one_batch
from rpa_tune.cli.numbers import number
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.families.registry import ALL_FAMILIES
from rpa_tune.hw.chip import load_chip
from rpa_tune.libtpu_args import parse_args
from rpa_tune.models.catalog import model_name
from rpa_tune.ranges import FIELD
from rpa_tune.workload.batch_data import batch_from_data
from rpa_tune.workload.workload import Workload

Command = TypeVar("Command", bound=Callable[..., None])
if TYPE_CHECKING:
    _TextParam = click.ParamType[str]
else:  # generic from click 8.5 on
    _TextParam = click.ParamType


class RenamedOption(click.Option):
    """An option whose old spelling still works, and is not shown by `--help`."""

    def __init__(self, declarations: Sequence[str], *, old: str, **settings: Any) -> None:
        """Takes what `click.Option` does, and the old spelling."""
        super().__init__([*declarations, old], **settings)
        self._old = old

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The line of `--help`, without the old spelling."""
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name != self._old]
        return super(RenamedOption, shown).get_help_record(ctx)


class NameChoice(_TextParam):
    """One of a few names, however it is spelt; see `rpa_kernels.names`."""

    name = "choice"

    def __init__(self, names: Iterable[str], others: Mapping[str, str] | None = None) -> None:
        """Keeps the names, and other name -> name."""
        self._names = tuple(names)
        self._others = others or {}

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """`[a|b]` for `--help`."""
        return f"[{'|'.join(self._names)}]"

    def shell_complete(self, *asked: Any) -> list[CompletionItem]:
        """Names that begin as the last of `asked` does."""
        return [CompletionItem(name) for name in self._names if name.startswith(asked[-1])]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name that was meant.

        Raises:
          UsageError: None of them.
        """
        found = find_name(value, self._names, self._others)
        if found is None:
            option = param.opts[0] if param else "the option"
            raise UsageError(
                f"{value!r} is not one of {', '.join(self._names)}",
                where=option,
                hint=did_you_mean(value, self._names, self._others),
            )
        return found


class NameChoices(NameChoice):
    """Names out of a list, with commas between them."""

    name = "names"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names that were meant; a default is a tuple already.

        Raises:
          UsageError: One is none of them.
        """
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(super(NameChoices, self).convert(part.strip(), param, ctx) for part in parts)


class ChipName(_TextParam):
    """A chip, however it is spelt; see `load_chip`."""

    name = "chip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Its name in the chip table.

        Raises:
          UsageError: No such chip.
        """
        return load_chip(value).name


class ModelName(_TextParam):
    """A model, however it is spelt; see `model_name`. Whether it exists is found out later."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Its built-in name, or the path."""
        return model_name(value)


class LibtpuArgs(_TextParam):
    """Flags of libtpu, in any order; see `libtpu_args.parse_args`."""

    name = "flags"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The flags as they are kept.

        Raises:
          UsageError: They are none.
        """
        return parse_args(value, param.opts[0] if param else "")


KV_DTYPE = NameChoice(KV_DTYPES, OTHER_DTYPE_NAMES)
SOME_KV_DTYPES = NameChoices(KV_DTYPES, OTHER_DTYPE_NAMES)
Q_DTYPE = NameChoice(Q_DTYPES, OTHER_DTYPE_NAMES)
KV_LAYOUT_OPTION = click.option(
    "--kv-layout", default=KV_LAYOUTS[0], show_default=True, type=NameChoice(KV_LAYOUTS),
    help="Layout of the KV cache; seq_along_lane pads nothing.",
)  # fmt: skip

CHIP_OPTION = click.option(
    "--chip", required=True, type=ChipName(), help="Chip to compile for: v4, v5e, v5p, v6e or v7x."
)
_NAMES = (
    CHIP_OPTION,
    click.option("--family", required=True, type=NameChoice(FAMILIES), help="Kernel family."),
    click.option("--model", required=True, type=ModelName(),
                 help="Model name, or the path of a config.json."),
)  # fmt: skip
_OPTIONS = (
    click.option("--config", "config_text", default="", metavar="K=V,...",
                 help="Fields that override the family's default config."),
    click.option("--tp", default=1, show_default=True, type=number("tp"),
                 help="Devices that share the heads."),
    click.option("--page-size", default=128, show_default=True, type=number("page_size"),
                 help="Tokens in a KV cache page."),
    click.option("--q-dtype", default="bfloat16", show_default=True, type=Q_DTYPE,
                 help="Dtype of queries."),
    click.option("--kv-dtype", default="bfloat16", show_default=True, type=KV_DTYPE,
                 help="Dtype of the KV cache."),
    KV_LAYOUT_OPTION,
    click.option("--layers",
                 help="Kind of layers of a model that has several, such as window-1024."),
    click.option("--windowed/--not-windowed", default=None,
                 help="A layer with the model's sliding window, or one without."),
)  # fmt: skip

cache_option = click.option(
    "--cache", type=click.Path(path_type=Path), default=default_cache_dir,
    help="Folder for cached compiles; default: the user's cache folder.",
)  # fmt: skip

libtpu_args_option = click.option(
    "--libtpu-args", default="", type=LibtpuArgs(), metavar="FLAGS",
    help="Flags that libtpu of the server is given, as in its LIBTPU_INIT_ARGS.",
)  # fmt: skip

batch_option = click.option(
    "--batch", "batch_file", type=click.Path(path_type=Path),
    help='File with one batch, JSON {"q_lens": [..], "kv_lens": [..], "num_decode": n}.',
)  # fmt: skip


def candidate_options(command: Command) -> Command:
    """Adds the options that name a family, a problem, a config and a chip."""
    for option in reversed((*_NAMES, *_OPTIONS)):
        command = option(command)
    return command


def kernel_options(command: Command) -> Command:
    """The same for a command that takes a function in place of a family and a model."""
    names = (
        CHIP_OPTION,
        click.option("--family", type=NameChoice(ALL_FAMILIES),
                     help="Kernel family, ours or a public one."),
        click.option("--model", type=ModelName(),
                     help="Model name, or the path of a config.json."),
    )  # fmt: skip
    for option in reversed((*names, *_OPTIONS)):
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
        value = value.strip()
        if not (value.isascii() and value.isdigit()) or name.strip() in fields:
            raise UsageError(
                f"{part!r} must be name=integer, each name once",
                where="--config",
                hint="bkv_sz=512,bq_sz=8",
            )
        fields[name.strip()] = int(FIELD.check(int(value), name.strip(), where="--config"))
    return fields


def read_batch(path: Path) -> Workload:
    """A workload of one batch with given lengths.

    Raises:
      UsageError: The file does not describe a batch.
    """
    try:
        batch = batch_from_data(json.loads(path.read_text(encoding="utf-8")))
        return one_batch(batch, name=path.name, source=str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"not a batch: {error}",
            where=str(path),
            hint='{"q_lens": [1, 1, 64], "kv_lens": [700, 90, 64], "num_decode": 2}',
        ) from error
