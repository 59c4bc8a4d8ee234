"""The servers of a plan: the flags under `server:` and `servers:`, read with file and line.

```
servers:                     # each problem of a fleet is tuned once
  - {model: llama3-8b, chip: v6e, max_num_seqs: 64, max_num_batched_tokens: 1024}
  - {model: qwen3-32b, chip: v7x, tp: 4, max_model_len: 32768, tokens: [16, 32]}
  - {tp: [1, 8], model: [qwen3-8b, llama3-70b], chip: [v6e, v7x], families: [decode]}
```

The keys are those of `rpa-tune plan`. `tokens` names the shapes to tune and `families` the kernel
families, all if it is left out. The lists of an entry are crossed, the first one of the entry
slowest, and servers among them that cannot be are left out: heads that the devices cannot share, or
a model that they have no room for. An entry without lists is one server, and must be able to be.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rpa_kernels.dtypes import OTHER_NAMES
from rpa_kernels.layout import KV_DTYPES, KV_LAYOUTS
from rpa_tune.errors import UsageError
from rpa_tune.families.registry import ALL_FAMILIES
from rpa_tune.hw.chip import chip_spellings, find_chip, load_chips
from rpa_tune.models.buckets import ENGINES, Engine
from rpa_tune.models.catalog import model_name
from rpa_tune.models.flags import read_list
from rpa_tune.models.roofline import HBM_SHARE, Roofline, hbm_bytes
from rpa_tune.models.server import FLAGS, Server, as_server, context_token_bytes
from rpa_tune.sweep.nodes import Node, read_yaml

_SWITCHES = ("bucket_seqs", "uses_prefill")
# What of a server is tuned; no flags.
_SELECTIONS = ("tokens", "families")
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
    engine: Engine = _made(Engine, _values(entries), _selected(entries), node)
    return engine


def read_servers(node: Node) -> tuple[Server, ...]:
    """The servers under `servers:`.

    Raises:
      UsageError: As above, none, or an entry of lists none of whose servers can be.
    """
    servers: list[Server] = []
    for item in node.items():
        entries = item.entries((*FLAGS, *_SELECTIONS), "a server")
        if missing := [key for key in ("model", "chip") if key not in entries]:
            raise UsageError(f"missing {', '.join(missing)} in a server", where=item.where)
        if not any(isinstance(entries[name].value, list) for name in CROSSED if name in entries):
            servers.append(_made(Server, _values(entries), _selected(entries), item))
            continue
        crossed = list(_crossed(entries, item))
        possible = [server for server in crossed if not why_not(server)]
        if not possible:
            why = why_not(crossed[0]) if crossed else "a list is empty"
            raise UsageError(f"none of these servers can be: {why}", where=item.where)
        servers += possible
    if not servers:
        raise UsageError("servers is empty", where=node.where)
    return tuple(dict.fromkeys(servers))


def _crossed(entries: Mapping[str, Node], item: Node) -> Iterator[Server]:
    """Every combination of an entry's lists, the first list slowest."""
    fixed = _values({name: node for name, node in entries.items() if name not in CROSSED})
    selected = _selected(entries)
    names = [name for name in entries if name in CROSSED]
    choices = [[_value(name, node) for node in entries[name].items()] for name in names]
    for values in itertools.product(*choices):
        given = {**fixed, **dict(zip(names, values, strict=True))}
        yield _made(Server, given, selected, item)


def why_not(server: Server) -> str:
    """Why nobody runs such a server; empty if somebody can.

    Its devices need room for weights of one byte each, as checkpoints in float8 have, and for one
    sequence at its longest. Where the weights are not known there is taken to be room.
    """
    try:
        layers = server.layers()
    except UsageError as error:
        return str(error.args[0])
    weights = server.loaded.weights
    if isinstance(weights, str):
        return ""
    share = Roofline(
        weights=weights, chip=server.loaded_chip, tp=server.tp, weight_dtype="float8_e4m3fn"
    )
    needed = share.weight_bytes + context_token_bytes(layers) * server.max_model_len
    room = HBM_SHARE * hbm_bytes(server.loaded_chip)
    if needed <= room:
        return ""
    return (
        f"{server.model} needs {needed / 1e9:.0f} GB of each of {server.tp} {server.chip}, "
        f"which have {room / 1e9:.0f} GB for it"
    )


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
    return {name: _value(name, node) for name, node in entries.items() if name not in _SELECTIONS}


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


def _made(
    make: Callable[..., Any],
    values: Mapping[str, Any],
    selected: Mapping[str, tuple[tuple[Any, ...], Node]],
    node: Node,
) -> Any:
    """A record; what is wrong between its fields is said with the line.

    Args:
      make: Its class.
      values: Its flags.
      selected: What of it is tuned: field -> value, and where that stands.
      node: Where the flags stand.
    """
    chosen = {name: value for name, (value, _) in selected.items()}
    try:
        return make(**values, **chosen)
    except UsageError as error:
        error.where = error.where or _blamed(make, values, selected, node).where
        raise


def _blamed(
    make: Callable[..., Any],
    values: Mapping[str, Any],
    selected: Mapping[str, tuple[tuple[Any, ...], Node]],
    node: Node,
) -> Node:
    """What is to blame for a record that cannot be: a selection if it can be without."""
    try:
        make(**values)
    except UsageError:
        return node
    return next((place for _, place in selected.values()), node)


def _selected(entries: Mapping[str, Node]) -> dict[str, tuple[tuple[Any, ...], Node]]:
    """The shapes that `tokens` names and the families of `families`: field -> value, and where."""
    found = {}
    for name in _SELECTIONS:
        if name not in entries:
            continue
        items = entries[name].items()
        if not items:
            raise UsageError(f"{name} is empty", where=entries[name].where)
        if name == "tokens":
            chosen: tuple[Any, ...] = tuple(item.integer(name) for item in items)
        else:
            chosen = tuple(item.choice(ALL_FAMILIES, "family") for item in items)
        found[f"only_{name}"] = (chosen, entries[name])
    return found
