"""A plan, such as those of `sweeps/`, into a `SweepPlan`; what is wrong is said with file and line.

```
about: Which block sizes serve Llama-3-8B chat on v6e?
chip: v6e                    # or a list: every combination is a study of its own
model: llama3-8b             # a built-in name, or a Hugging Face config.json
families: [decode, mixed]
page_size: 128
dtype: bfloat16              # of queries
kv_dtype: bfloat16           # of the KV cache
kv_layout: head_along_sublane   # of the KV cache, or seq_along_lane
tp: 1                        # devices that share the heads
workload: azure-conv         # a preset, a file, a mapping (docs/workloads.md), or a weighted set:
                             # {azure-conv: 0.7, azure-code: 0.3}
objective: expected_time     # over the workload's steps, or worst_regret
space:                       # values to try instead of the family's own
  decode: {bkv_sz: [256, 512, 8 pages]}
server:                      # optional: what this server compiles, all its shapes or some
  {max_num_seqs: 64, max_num_batched_tokens: 1024, max_model_len: 8192, tokens: [512, 1024]}
search: {simulate: 20, least_gain_pct: 0.3, measure: 4, wave: 4, deadline: 2m, seed: 0}
budget: 30m
libtpu_args: --xla_tpu_use_dynamic_smem_negotiation=true   # optional: flags of the deployment
```

`servers:`, a list of flag sets (`plan_servers.py`), stands in the place of `chip`, `model`,
`page_size`, `kv_dtype`, `tp` and `server`; `families` are those that the servers launch then.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rpa_kernels import layout
from rpa_kernels.dtypes import OTHER_NAMES
from rpa_tune.decide.objective import OBJECTIVES
from rpa_tune.errors import UsageError
from rpa_tune.families.registry import ALL_FAMILIES, load_family
from rpa_tune.libtpu_args import parse_args
from rpa_tune.models.buckets import Engine
from rpa_tune.models.catalog import model_name
from rpa_tune.models.server import Server
from rpa_tune.sweep.nodes import Node, as_data, parse_yaml, read_yaml
from rpa_tune.sweep.plan_servers import read_chip, read_engine, read_servers
from rpa_tune.sweep.sampler import SAMPLERS, Search
from rpa_tune.tables.row import MAX_CONFIGS

KEYS = (
    "about", "chip", "model", "families", "page_size", "dtype", "kv_dtype", "kv_layout", "tp",
    "workload", "objective", "server", "servers", "space", "search", "budget", "libtpu_args",
)  # fmt: skip
REQUIRED = ("chip", "model", "families", "page_size", "workload")
# What `servers` says instead.
OF_SERVERS = ("chip", "model", "page_size", "kv_dtype", "kv_layout", "tp", "server")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """What a person wants tuned. Lists are crossed.

    Attributes:
      path: File it was read from.
      about: The question it answers.
      chips: Names in the chip table.
      models: Built-in names or paths.
      families: Kernel families.
      page_sizes: Tokens in a KV cache page.
      q_dtype: Dtype name of queries.
      kv_dtypes: Dtype names of the KV cache.
      kv_layouts: Its layouts.
      tps: Devices that share the heads.
      workload: What `load_workload` takes.
      server: Whose shapes are tuned, with each model, chip, ...; None for the one shape that the
        workload's largest batch is padded to.
      servers: Servers with flags of their own, whose shapes are tuned; the lists above only say
        what they have then.
      overrides: Family -> axis -> values, replacing the family's own.
      search: How hard to look.
      budget_s: Stop after this long, resumable; None for no limit.
      libtpu_args: Flags that libtpu of the server is given; see `libtpu_args.py`.
      lines: Where a key stands in the file, for errors found later.
    """

    path: Path
    about: str
    chips: tuple[str, ...]
    models: tuple[str, ...]
    families: tuple[str, ...]
    page_sizes: tuple[int, ...]
    q_dtype: str
    kv_dtypes: tuple[str, ...]
    tps: tuple[int, ...]
    workload: str | Mapping[str, Any]
    kv_layouts: tuple[str, ...] = (layout.HEAD_ALONG_SUBLANE,)
    server: Engine | None = None
    servers: tuple[Server, ...] = ()
    overrides: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    search: Search = field(default_factory=Search)
    budget_s: float | None = None
    libtpu_args: str = ""
    lines: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def each_server(self) -> tuple[Server, ...]:
        """The servers whose shapes are tuned; none if it is the workload's shape.

        Raises:
          UsageError: Flags that do not go together.
        """
        if self.servers or self.server is None:
            return self.servers
        flags = {field.name: getattr(self.server, field.name) for field in fields(Engine)}
        # Who lists the prefill family has a server that uses it.
        flags["uses_prefill"] |= any("prefill" in load_family(f).slots for f in self.families)
        return tuple(
            Server(**flags | {"chip": chip, "model": model, "tp": tp, "page_size": page_size,
                              "kv_dtype": kv_dtype, "kv_layout": kv_layout})
            for page_size, chip, model, tp, kv_dtype, kv_layout in itertools.product(
                self.page_sizes, self.chips, self.models, self.tps, self.kv_dtypes, self.kv_layouts
            )
        )  # fmt: skip

    def on_chip(self, chip: str) -> "SweepPlan":
        """The same for another chip alone.

        Args:
          chip: Its name.
        """
        servers = tuple(dict.fromkeys(replace(server, chip=chip) for server in self.servers))
        return replace(self, chips=(chip,), servers=servers)


def shipped_plans() -> dict[str, Path]:
    """The plans of this installation by name, in the order of their names."""
    files = Path(str(resources.files("rpa_sweeps"))).glob("*.yaml")
    return {path.stem: path for path in sorted(files)}


def find_plan(plan: Path) -> Path:
    """The file of a plan: the file itself, or the shipped plan of that name if there is no file.

    Raises:
      UsageError: There is neither.
    """
    is_name = plan.name == str(plan) and not plan.suffix
    if plan.is_file() or not is_name:
        return plan  # reading it says what is wrong with it
    shipped = shipped_plans()
    if plan.name not in shipped:
        raise UsageError(
            f"{plan.name!r} is neither a file nor a plan that comes with rpa-tune",
            where="PLAN",
            hint=f"those are {', '.join(shipped)}; a plan of your own is a YAML file",
        )
    return shipped[plan.name]


def load_plan(plan: str | Path | Mapping[str, Any]) -> SweepPlan:
    """Reads a plan.

    Args:
      plan: A file, the name of a shipped plan (see `find_plan`), or a mapping with the same keys.

    Raises:
      UsageError: The file cannot be read, or something in it is unknown, missing or impossible.
    """
    if isinstance(plan, Mapping):
        text = yaml.safe_dump(as_data(plan, "the plan"), sort_keys=False)
        return read_plan(parse_yaml(text, "the plan"), Path("plan.yaml"))
    if not isinstance(plan, str | Path):
        raise UsageError(
            f"a plan is a file, the name of a shipped plan or a mapping, got {plan!r}", where="plan"
        )
    path = find_plan(Path(plan))
    return read_plan(read_yaml(path), path)


def read_plan(root: Node, path: Path) -> SweepPlan:
    """The plan that YAML says.

    Args:
      root: The whole of it.
      path: Where it is from.

    Raises:
      UsageError: As `load_plan`.
    """
    entries = root.entries(KEYS, "the plan")
    has_servers = "servers" in entries
    for key in OF_SERVERS if has_servers else ():
        if key in entries:
            raise UsageError(
                f"{key} beside servers, each of which says its own", where=entries[key].where
            )
    needed = ("workload",) if has_servers else REQUIRED
    if missing := [key for key in needed if key not in entries]:
        raise UsageError(f"missing {', '.join(missing)} in the plan", where=str(path))
    dtype = entries.get("dtype")
    q_dtype = dtype.choice(layout.Q_DTYPES, "dtype", OTHER_NAMES) if dtype else "bfloat16"
    said = _said_by_servers(entries["servers"]) if has_servers else _crossed(entries, q_dtype)
    if "families" in entries:
        said["families"] = tuple(
            n.choice(ALL_FAMILIES, "family") for n in _each(entries, "families")
        )
    return SweepPlan(
        path=path,
        about=entries["about"].text() if "about" in entries else "",
        q_dtype=q_dtype,
        workload=_workload(entries["workload"]),
        overrides=_overrides(entries.get("space"), said["families"], said["page_sizes"]),
        search=_search(entries.get("search"), entries.get("objective")),
        budget_s=entries["budget"].seconds("budget") if "budget" in entries else None,
        libtpu_args=_libtpu_args(entries.get("libtpu_args")),
        lines={key: node.where for key, node in entries.items()},
        **said,
    )


def _libtpu_args(node: Node | None) -> str:
    """Flags, one string or a list of them."""
    words = [] if node is None else [item.text() for item in node.items()]
    return parse_args(" ".join(words), node.where if node else "")


def _each(entries: Mapping[str, Node], key: str) -> list[Node]:
    """The items of a list.

    Raises:
      UsageError: There is none.
    """
    nodes = entries[key].items()
    if not nodes:
        raise UsageError(f"{key} is empty", where=entries[key].where)
    return nodes


def _crossed(entries: Mapping[str, Node], q_dtype: str) -> dict[str, Any]:
    """The lists of a plan that are crossed, and the server that they are crossed with."""
    page_sizes = tuple(node.integer("page_size") for node in _each(entries, "page_size"))
    kv_dtypes: tuple[str, ...] = (q_dtype,)
    if "kv_dtype" in entries:
        nodes = _each(entries, "kv_dtype")
        kv_dtypes = tuple(n.choice(layout.KV_DTYPES, "kv_dtype", OTHER_NAMES) for n in nodes)
    kv_layouts: tuple[str, ...] = (layout.HEAD_ALONG_SUBLANE,)
    if "kv_layout" in entries:
        kv_layouts = tuple(
            node.choice(layout.KV_LAYOUTS, "kv_layout") for node in _each(entries, "kv_layout")
        )
    return {
        "page_sizes": page_sizes,
        "kv_layouts": kv_layouts,
        "chips": tuple(read_chip(node) for node in _each(entries, "chip")),
        "models": tuple(model_name(node.text()) for node in _each(entries, "model")),
        "kv_dtypes": kv_dtypes,
        "tps": tuple(n.integer("tp") for n in _each(entries, "tp")) if "tp" in entries else (1,),
        "server": read_engine(entries["server"]) if "server" in entries else None,
    }


def _launched(server: Server) -> tuple[str, ...]:
    """The families that a server launches; what is wrong with its model its studies say."""
    try:
        return server.own_families()
    except UsageError:
        return server.families


def _said_by_servers(node: Node) -> dict[str, Any]:
    """What the servers have, in the place of lists that are crossed."""
    servers = read_servers(node)

    def distinct(name: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(getattr(server, name) for server in servers))

    launched = {
        family for server in servers for family in server.only_families or _launched(server)
    }
    return {
        "servers": servers,
        "families": tuple(family for family in ALL_FAMILIES if family in launched),
        "page_sizes": distinct("page_size"),
        "chips": distinct("chip"),
        "models": distinct("model"),
        "kv_dtypes": distinct("kv_dtype"),
        "kv_layouts": distinct("kv_layout"),
        "tps": distinct("tp"),
    }


def _workload(node: Node) -> str | Mapping[str, Any]:
    if isinstance(node.value, str | dict):
        return node.value
    raise UsageError(
        f"workload must be a preset, a file or a mapping, got {node.value!r}", where=node.where
    )


def _search(node: Node | None, objective: Node | None) -> Search:
    keys = (
        "simulate", "least_gain_pct", "measure", "wave", "configs", "sampler", "deadline", "seed"
    )  # fmt: skip
    entries = {} if node is None else node.entries(keys, "search")
    default = Search()
    deadline, gain = entries.get("deadline"), entries.get("least_gain_pct")
    configs = _integer(entries, "configs", default.configs)
    if configs > MAX_CONFIGS:
        raise UsageError(
            f"configs={configs}: a row has at most {MAX_CONFIGS}", where=entries["configs"].where
        )
    return Search(
        objective=objective.choice(OBJECTIVES, "objective") if objective else default.objective,
        simulate=_integer(entries, "simulate", default.simulate),
        least_gain_pct=gain.number("least_gain_pct") if gain else default.least_gain_pct,
        measure=_integer(entries, "measure", default.measure),
        wave=_integer(entries, "wave", default.wave),
        configs=configs,
        sampler=entries["sampler"].choice(SAMPLERS, "sampler")
        if "sampler" in entries
        else default.sampler,
        deadline_s=deadline.seconds("deadline") if deadline else default.deadline_s,
        seed=_integer(entries, "seed", default.seed),
    )


def _integer(entries: Mapping[str, Node], key: str, default: int) -> int:
    return entries[key].integer(key) if key in entries else default


def _overrides(
    node: Node | None, families: tuple[str, ...], page_sizes: tuple[int, ...]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Values by family and axis; refuses KV blocks that are no whole pages, nor a part of one."""
    if node is None:
        return {}
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, family_node in node.entries(families, "space").items():
        axes = list(load_family(name).config_type.__dataclass_fields__)
        entries = family_node.entries(axes, f"space.{name}")
        found[name] = {
            axis: _axis_values(axis, axis_node, page_sizes, name)
            for axis, axis_node in entries.items()
        }
    return found


def _axis_values(
    axis: str, node: Node, page_sizes: tuple[int, ...], family: str
) -> tuple[int, ...]:
    values = set()
    for item in node.items():
        if type(item.value) is not int and len(page_sizes) > 1:
            raise UsageError(
                f"{axis}={item.value!r}: with several page sizes give plain tokens",
                where=item.where,
            )
        value = item.tokens(axis, page_sizes[0])
        for page_size in page_sizes if axis == "bkv_sz" else ():
            if value % page_size and (value <= 0 or page_size % value):
                raise UsageError(
                    f"{axis}={value} is not a multiple of page_size={page_size} tokens",
                    where=f"{item.where} (family {family})",
                    hint=f"use {page_size}, {2 * page_size}, {3 * page_size}, ..., "
                    "or a size that divides it",
                )
        values.add(value)
    if not values:
        raise UsageError(f"{axis} has no values", where=node.where)
    return tuple(sorted(values))
