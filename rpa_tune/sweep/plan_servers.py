"""The servers of a plan: the flags under `server:` and `servers:`, read with file and line.

```
servers:                     # each problem of a fleet is tuned once
  - {model: llama3-8b, chip: v6e, max_num_seqs: 64, max_num_batched_tokens: 1024}
  - {model: qwen3-32b, chip: v7x, tp: 4, max_model_len: 32768, tokens: [16, 32]}
```

The keys are those of `rpa-tune plan`; `tokens` names the shapes to tune, all if it is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpa_kernels.dtypes import OTHER_NAMES
from rpa_kernels.layout import KV_DTYPES, KV_LAYOUTS
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import chip_spellings, find_chip, load_chips
from rpa_tune.models.buckets import ENGINES, Engine
from rpa_tune.models.catalog import model_name
from rpa_tune.models.flags import read_list
from rpa_tune.models.server import FLAGS, Server, as_server
from rpa_tune.sweep.nodes import Node, read_yaml

_SWITCHES = ("bucket_seqs", "uses_prefill")
# Flags that a plan with lists of chips, models, ... says elsewhere.
CROSSED = ("model", "chip", "tp", "page_size", "kv_dtype", "kv_layout")


def read_engine(node: Node) -> Engine:
    """The flags under `server:` of a plan whose models, chips, ... are lists.

    Raises:
      UsageError: An unknown flag, a missing or a bad one.
    """
    needed = ("max_num_seqs", "max_num_batched_tokens", "max_model_len")
    known = [name for name in FLAGS if name not in CROSSED]
    entries = node.entries((*known, "tokens"), "server")
    if missing := [key for key in needed if key not in entries]:
        raise UsageError(f"missing {', '.join(missing)} in server", where=node.where)
    engine: Engine = _with_tokens(_made(Engine, _values(entries), node), entries)
    return engine


def read_servers(node: Node) -> tuple[Server, ...]:
    """The servers under `servers:`.

    Raises:
      UsageError: As above, or none.
    """
    servers = []
    for item in node.items():
        entries = item.entries((*FLAGS, "tokens"), "a server")
        if missing := [key for key in ("model", "chip") if key not in entries]:
            raise UsageError(f"missing {', '.join(missing)} in a server", where=item.where)
        servers.append(_with_tokens(_made(Server, _values(entries), item), entries))
    if not servers:
        raise UsageError("servers is empty", where=node.where)
    return tuple(servers)


# One server or several: as records, as mappings of flags, or a file with a list of such.
AnyServers = Server | Mapping[str, Any] | str | Path | Sequence[Server | Mapping[str, Any]]


def as_fleet(servers: AnyServers) -> tuple[Server, ...]:
    """The servers, each once.

    Raises:
      UsageError: No server, or something that is none.
    """
    if isinstance(servers, str | Path):
        return load_fleet(Path(servers))
    listed = [servers] if isinstance(servers, Server | Mapping) else read_list(servers, "servers")
    return tuple(dict.fromkeys(as_server(one) for one in listed))


def load_fleet(path: Path) -> tuple[Server, ...]:
    """The servers of a file: a list of flag sets, or `servers:` with one.

    Raises:
      UsageError: The file cannot be read, or as `read_servers`.
    """
    root = read_yaml(path)
    if isinstance(root.value, dict):
        root = root.entries(("servers",), "the file")["servers"]
    return read_servers(root)


def read_chip(node: Node) -> str:
    """A chip, however it is spelt.

    Raises:
      UsageError: No such chip.
    """
    return find_chip(node.value) or node.choice(load_chips(), "chip", chip_spellings())


def _values(entries: Mapping[str, Node]) -> dict[str, Any]:
    return {name: _value(name, node) for name, node in entries.items() if name != "tokens"}


def _value(name: str, node: Node) -> Any:
    """What a flag says."""
    if name in _SWITCHES:
        if not isinstance(node.value, bool):
            raise UsageError(f"{name} must be true or false, got {node.value!r}", where=node.where)
        return node.value
    if name == "token_buckets":
        return tuple(item.integer(name) for item in node.items())
    if name == "chip":
        return read_chip(node)
    if name == "model":
        return model_name(node.text())
    if name == "engine":
        return node.choice(ENGINES, name)
    if name == "kv_dtype":
        return node.choice(KV_DTYPES, name, OTHER_NAMES)
    if name == "kv_layout":
        return node.choice(KV_LAYOUTS, name)
    return node.integer(name)


def _made(make: Callable[..., Any], values: Mapping[str, Any], node: Node) -> Any:
    """A record; what is wrong between its fields is said with the line."""
    try:
        return make(**values)
    except UsageError as error:
        error.where = error.where or node.where
        raise


def _with_tokens(engine: Any, entries: Mapping[str, Node]) -> Any:
    """The same with the shapes that `tokens` names."""
    if "tokens" not in entries:
        return engine
    items = entries["tokens"].items()
    if not items:
        raise UsageError("tokens is empty", where=entries["tokens"].where)
    values = {"only_tokens": tuple(item.integer("tokens") for item in items)}
    return _made(lambda **fields: replace(engine, **fields), values, entries["tokens"])
