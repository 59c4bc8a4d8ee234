"""From servers to a plan: `plan_for`, which is `rpa-tune plan` as a call.

The plan is YAML with comments: what each server compiles, how many studies and compiles that is,
and how long it takes. It is read again before it is handed out, so that it runs as it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rpa_tune.errors import UsageError
from rpa_tune.families.registry import ALL_FAMILIES, load_family
from rpa_tune.models.flags import read_list, read_name
from rpa_tune.models.server import Server
from rpa_tune.sweep.forecast import guess_seconds
from rpa_tune.sweep.nodes import as_data, parse_yaml
from rpa_tune.sweep.plan import read_plan
from rpa_tune.sweep.plan_servers import AnyServers, as_fleet
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.workload.workload import check_spec, load_workload

DEFAULT_WORKLOAD = "azure-conv"
# A workload as a plan says it: a preset, a file, or a mapping.
AnySpec = str | Path | Mapping[str, Any]
_WIDTH = 98


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerPlan:
    """A plan for servers, and what it comes to.

    Attributes:
      text: The plan, YAML with comments.
      servers: Whose.
      studies: What it tunes.
      num_workers: Processes that the sweep will have, for its time.
      left_out: Family that the workload never launches -> why; it has no study.
    """

    text: str
    servers: tuple[Server, ...]
    studies: tuple[Study, ...]
    num_workers: int
    left_out: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """Rows that the plan makes: one for each look-up of the servers, each once."""
        return sum(1 + len(study.fills) for study in self.studies)

    @property
    def num_compiles(self) -> int:
        """Distinct compiles, at most: a study has no more configs than its grid has points."""
        return sum(self.most_compiles(study) for study in self.studies)

    @property
    def seconds(self) -> float:
        """Of a sweep, at most; a guess."""
        num_checks = sum(s.search.configs for s in self.studies if not s.family.unverified)
        return guess_seconds(self.num_compiles, num_checks, self.num_workers)

    def most_compiles(self, study: Study) -> int:
        """Of one study."""
        return min(study.search.simulate, math.prod(len(axis.values) for axis in study.axes()))


def plan_for(
    servers: AnyServers,
    *,
    workload: AnySpec = DEFAULT_WORKLOAD,
    families: Sequence[str] | None = None,
    search: Mapping[str, Any] | None = None,
    about: str = "",
    num_workers: int = 1,
) -> ServerPlan:
    """Writes a plan that tunes every attention call that servers compile.

    A problem that several servers have is in it once.

    Args:
      servers: One, or a fleet: servers, mappings of their flags, or a file with a list of such;
        `Server.only_tokens` names the shapes to tune, all if empty.
      workload: A preset, a file or a mapping.
      families: Kernel families to tune; None for those whose sequences the servers launch.
      search: The plan's `search` section; None for the usual one.
      about: What the plan says it is for; made up if empty.
      num_workers: Processes that the sweep will have, for its time.

    Raises:
      UsageError: Servers that cannot be, an unknown workload, or one that launches none of the
        families.
    """
    fleet = as_fleet(servers)
    text, left_out = plan_text(
        fleet, workload=workload, families=families, search=search, about=about
    )
    plan = read_plan(parse_yaml(text, "the plan"), Path("plan.yaml"))
    studies = build_studies(plan)
    made = ServerPlan(
        text=text, servers=fleet, studies=tuple(studies), left_out=left_out,
        num_workers=num_workers,
    )  # fmt: skip
    comments = [*summary(made), "run it: rpa-tune sweep FILE; --dry-run says what each study costs"]
    return replace(made, text="".join(f"# {line}\n" for line in comments) + text)


# What the engines' own kernels are called as families, by head size: of 64, and of any other. The
# v3 kernel of sglang-jax is a fork of tpu-inference's; it has none for heads of 64 alone.
KERNELS = {
    "public": (("public-hd64",), ("public-v3-decode", "public-v3-mixed")),
    "batched": (("public-hd64",), ("public-batched-decode", "public-batched-mixed")),
}
_HD64 = 64
_LATENT = ("public-mla-decode", "public-mla-mixed")  # whatever kernel is asked for


def families_of_kernel(servers: Sequence[Server], kernel: str) -> list[str]:
    """The families of the kernel that engines run by themselves, for layers that servers have.

    Args:
      servers: One or more.
      kernel: `public`, what an engine runs by default, or `batched`, what tpu-inference runs with
        `USE_BATCHED_RPA_KERNEL`.

    Raises:
      UsageError: An engine that has no such kernel.
    """
    names: list[str] = []
    for server in servers:
        is_sglang = server.engine == "sglang-jax"
        if is_sglang and kernel != "public":
            raise UsageError(f"sglang-jax has no {kernel} kernel", hint="--kernel public")
        for share in server.layers():
            if share.problem.is_latent:
                if is_sglang:
                    raise UsageError(
                        f"{share.name} of {server.model}: sglang-jax's kernel for latent attention "
                        "is none of our public families",
                        hint="tune our kernels for them: leave --kernel out",
                    )
                names += _LATENT
                continue
            is_64 = share.problem.head_dim == _HD64
            if is_64 and is_sglang:
                raise UsageError(
                    f"{share.name} of {server.model}: heads of 64 are padded by sglang-jax's "
                    "kernel, and public-v3 takes none of these",
                    hint="tune our kernels for them: leave --kernel out",
                )
            names += KERNELS[kernel][0 if is_64 else 1]
    return list(dict.fromkeys(names))


def plan_text(
    servers: Sequence[Server],
    *,
    workload: AnySpec,
    families: Sequence[str] | None = None,
    search: Mapping[str, Any] | None = None,
    about: str = "",
) -> tuple[str, dict[str, str]]:
    """The plan without what it comes to, and the families that are left out with the reason.

    The arguments, and what is raised, are those of `plan_for`.
    """
    if not servers:
        raise UsageError("no server to plan for")
    workload = as_data(check_spec(workload), "the workload")
    if families is None:
        named = {family for server in servers for family in server.own_families()}
    else:
        named = {read_name(f, ALL_FAMILIES, "families") for f in read_list(families, "families")}
    asked = [family for family in ALL_FAMILIES if family in named]
    left_out = never_launched(servers, workload, asked)
    asked = [family for family in asked if family not in left_out]
    if not asked:
        raise UsageError(
            f"workload {workload!r} launches none of {', '.join(left_out)}",
            hint="name another --workload",
        )
    head: dict[str, Any] = {"about": about or f"Every attention call of {_names(servers)}."}
    if families is not None or left_out:
        head["families"] = asked
    tail: dict[str, Any] = {
        "workload": workload,
        **({"search": as_data(search, "search")} if search else {}),
    }
    listed = "".join(_entry(server) for server in servers)
    return f"{_yaml(head)}servers:\n{listed}{_yaml(tail)}", left_out


def never_launched(
    servers: Sequence[Server], workload: AnySpec, families: Sequence[str]
) -> dict[str, str]:
    """Families that a workload never launches on any of the servers, and why.

    Raises:
      UsageError: An unknown workload.
    """
    left_out = {}
    batches = load_workload(workload, page_size=servers[0].page_size)
    for family in families:
        try:
            batches.for_family(*load_family(family).slots)
        except ValueError as error:
            left_out[family] = str(error)
    return left_out


def summary(plan: ServerPlan) -> list[str]:
    """What a plan comes to, for people."""
    fills = plan.num_rows - len(plan.studies)
    filled = f", {fills:,} of them filled by a study of another shape" if fills else ""
    return [
        f"{_counted(len(plan.studies), 'study', 'studies')} for "
        f"{_counted(plan.num_rows, 'row', 'rows')}{filled}",
        f"at most {plan.num_compiles:,} distinct compiles; about {_duration(plan.seconds)} with "
        f"{_counted(plan.num_workers, 'worker', 'workers')} (a guess until the store has times)",
        *(f"{family} is left out: {why}" for family, why in plan.left_out.items()),
    ]


def _entry(server: Server) -> str:
    """One server of the list, with what follows from its flags as comments."""
    flags = {name: list(v) if isinstance(v, tuple) else v for name, v in server.flags.items()}
    shapes = list(server.shapes())
    if server.only_tokens:
        flags["tokens"] = sorted({shape.num_tokens for shape in shapes})
    if server.only_families:
        flags["families"] = list(server.only_families)
    seqs = sorted({shape.num_seqs for shape in shapes})
    tokens = sorted({shape.num_tokens for shape in shapes})
    rank = " of a rank" if server.dp > 1 else ""
    lines = [
        f"{server.model} on {server.chip}: {server.loaded.layers_text}",
        f"shapes{rank}: {_listed(tokens)} tokens; {_listed(seqs)} sequences",
    ]
    for share in server.layers():
        p = share.problem
        lines.append(
            f"{share.name}: {p.num_q_heads} query and {p.num_kv_heads} KV heads of {p.head_dim} "
            f"a device, {p.pages_per_seq} pages of {p.page_size} tokens a sequence"
        )
    comments = "".join(f"  # {line}\n" for line in lines)
    first, *others = _yaml(flags).splitlines(keepends=True)
    return f"{comments}  - {first}{''.join(f'    {line}' for line in others)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _yaml(data: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(
        dict(data), sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=False
    )
    return text


def _names(servers: Sequence[Server]) -> str:
    return ", ".join(dict.fromkeys(f"{server.model} on {server.chip}" for server in servers))


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"
