"""One study: a family, a problem, a chip and a workload. A plan is a list of them."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.decide.promote import served_lengths
from rpa_tune.errors import RpaTuneError, UsageError
from rpa_tune.families.family import Family
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.models.catalog import Share, load_model, problems_for
from rpa_tune.models.server import FLAGS, Server
from rpa_tune.provenance import provenance
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import Space, build_axes, build_space
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.notes import StudyPlan
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.sampler import Search
from rpa_tune.sweep.sampler_choice import MAX_KRIGING_POOL, sampler_identity
from rpa_tune.sweep.shapes import Group, ServedBy, groups_of
from rpa_tune.tables.key import TuningKey, studied_key, tuning_key
from rpa_tune.workload.batches import combine
from rpa_tune.workload.workload import Workload, load_workload

_MOST_NAMES = 3  # of a study that several servers ask for
# How a label says a flag; others are said by name and value.
_SAID = {"page_size": "page {}", "kv_dtype": "{}", "kv_layout": "{}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is searched in one go.

    Attributes:
      name: `chip/model/family`, with what else varies in the plan.
      family: Kernel family.
      problem: Static shapes and dtypes.
      chip: Where it runs.
      workload: The batches that launch this family.
      overrides: Axis -> values, replacing the family's own.
      search: How hard to look.
      fills: Problems whose rows are those of this one (`tables.key.FILLED`), and not timed.
      libtpu_args: Flags that the compiler is given; see `libtpu_args.py`.
    """

    name: str
    family: Family
    problem: Problem
    chip: Chip
    workload: Workload
    overrides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    search: Search = field(default_factory=Search)
    fills: tuple[Problem, ...] = ()
    libtpu_args: str = ""

    def space(self) -> Space:
        """The configs that can exist."""
        return build_space(self.family, self.problem, self.chip.target, self.overrides)

    def axes(self) -> tuple[Axis, ...]:
        """The axes of the space, without looking at its configs."""
        return build_axes(self.family, self.problem, self.chip.target, self.overrides)

    def sampler(self) -> dict[str, str]:
        """Who chooses what is simulated, with the versions that decide it."""
        num_configs = math.prod(len(axis.values) for axis in self.axes())
        if self.search.sampler == "auto" and num_configs > MAX_KRIGING_POOL:
            num_configs = len(self.space().configs)
        return sampler_identity(self.search, num_configs)

    def heuristic(self) -> Any | Infeasible:
        """The family's own choice, which every search has to beat."""
        return self.family.default_config(self.problem, self.chip.target)

    @property
    def digest(self) -> str:
        """`Candidate.study` of its candidates."""
        return self.candidate(None).study

    @property
    def key(self) -> TuningKey:
        """What its row is looked up by."""
        return tuning_key(self.problem, self.chip.name, self.family.name)

    @property
    def keys(self) -> tuple[TuningKey, ...]:
        """What all its rows are looked up by, its own last."""
        filled = (tuning_key(p, self.chip.name, self.family.name) for p in self.fills)
        return (*filled, self.key)

    def note(self) -> StudyPlan:
        """What the store keeps of it before it begins."""
        heuristic = self.heuristic()
        return StudyPlan(
            name=self.name,
            study=self.digest,
            num_evaluations=self.search.simulate,
            heuristic=None if isinstance(heuristic, Infeasible) else config_to_dict(heuristic),
            stamp=stamp_of(provenance(self.family.digest)),
            sampler=self.sampler(),
            axes={axis.name: list(axis.values) for axis in self.axes()},
            workload={
                "name": self.workload.name,
                "source": self.workload.source,
                "batches": [
                    {"weight": wb.weight, **asdict(served_lengths(wb.batch, self.family))}
                    for wb in self.workload.batches
                ],
            },
            objective=self.search.objective,
        )

    def candidate(self, config: Any) -> Candidate:
        """The candidate of one config."""
        return Candidate(
            family=self.family,
            problem=self.problem,
            config=config,
            chip=self.chip,
            workload=self.workload.digest,
            libtpu_args=self.libtpu_args,
        )


def build_studies(plan: SweepPlan) -> list[Study]:
    """The studies of a plan, all with its flags of libtpu; see `_studies`."""
    return [replace(study, libtpu_args=plan.libtpu_args) for study in _studies(plan)]


def _studies(plan: SweepPlan) -> list[Study]:
    """Crosses the plan's lists, or takes its servers; kinds of layers have studies of their own.

    Studies of one problem become one, under the names of all that have it.

    Raises:
      UsageError: An unknown model or workload, heads that `tp` does not divide, or a family that
        the workload never launches; with the plan's file and line.
    """
    families = [load_family(name) for name in plan.families]
    with _blame(plan, "server"):
        servers = plan.each_server
    if servers:
        return _joined(_merged(_of_servers(plan, servers, families)))
    studies = []
    for page_size in plan.page_sizes:
        with _blame(plan, "workload"):
            workload = load_workload(plan.workload, page_size=page_size)
        with _blame(plan, "families"):
            batches = {f.name: workload.for_family(*f.slots) for f in families}
        for chip_name, model, tp, kv_dtype, kv_layout in itertools.product(
            plan.chips, plan.models, plan.tps, plan.kv_dtypes, plan.kv_layouts
        ):
            chip = load_chip(chip_name)
            cache = {"page_size": page_size, "kv_dtype": kv_dtype, "kv_layout": kv_layout}
            shares = _shares(plan, workload, model, tp, cache)
            with _blame(plan, "families"):
                pairs = pair_up(shares, families)
            for share, serving in pairs:
                problem = share.problem
                with _blame(plan, "page_size"):
                    chip.require_room(page_bytes=problem.page_bytes, num_seqs=problem.max_num_seqs)
                labels = _labels(plan, chip.name, model, share, tp)
                studies += [
                    Study(
                        name="/".join([*labels, family.name]),
                        family=family,
                        problem=problem,
                        chip=chip,
                        workload=batches[family.name],
                        overrides=plan.overrides.get(family.name, {}),
                        search=_search(plan, family),
                    )
                    for family in serving
                ]
    return _merged(studies)


def _of_servers(
    plan: SweepPlan, servers: Sequence[Server], families: Sequence[Family]
) -> Iterator[Study]:
    """The studies of each server: a kind of layers and a family, in shapes that share rows."""
    for family in families:
        if not any(set(family.slots) & set(server.families) for server in servers):
            raise UsageError(
                f"no server has sequences for family {family.name}",
                where=plan.lines.get("families", str(plan.path)),
                hint="servers that fill the prefill slot have uses_prefill: true",
            )
    differing = {name for name in FLAGS if len({getattr(s, name) for s in servers}) > 1}
    served_by = ServedBy(plan.workload)
    for server in servers:
        with _blame(plan, "servers" if plan.servers else "tp" if "tp" in plan.lines else "model"):
            layers = server.layers(q_dtype=plan.q_dtype)
            only = [load_family(name) for name in server.only_families]
        with _blame(plan, "workload"):
            served = served_by(server)
        with _blame(plan, "families" if "families" in plan.lines else "model"):
            pairs = pair_up(layers, families)
        for share, family in ((share, family) for share, serving in pairs for family in serving):
            if only and family not in only:
                continue
            for group in groups_of(server, share.problem, family):
                with _blame(plan, "families" if "families" in plan.lines else "workload"):
                    workload = served.of(group, family)
                labels = _server_labels(server, differing, share, group)
                yield Study(
                    name="/".join([*labels, family.name]),
                    family=family,
                    problem=group.problems[-1],
                    chip=server.loaded_chip,
                    workload=workload,
                    overrides=plan.overrides.get(family.name, {}),
                    search=_search(plan, family),
                    fills=group.problems[:-1],
                )


def pair_up(
    shares: Sequence[Share], families: Sequence[Family]
) -> list[tuple[Share, list[Family]]]:
    """Each kind of layers with those families that serve its kind of cache.

    Raises:
      UsageError: Layers that none of the families is for.
    """
    pairs = [
        (share, [f for f in families if f.is_latent is share.problem.is_latent]) for share in shares
    ]
    for share, serving in pairs:
        if not serving:
            names = ", ".join(family.name for family in families)
            kind = ("latent", "mla-decode") if share.problem.is_latent else ("no latent", "decode")
            raise UsageError(
                f"{names}: none of these families is for the {share.name} layers",
                hint=f"families for {kind[0]} caches are those like {kind[1]}",
            )
    return pairs


def _merged(studies: Iterable[Study]) -> list[Study]:
    """One study for each question, named after all that ask it."""
    alike: dict[tuple[Any, ...], list[Study]] = {}
    for study in studies:
        question = (study.family.name, study.chip.name, study.problem, study.workload.digest)
        alike.setdefault((*question, study.fills), []).append(study)
    return [replace(same[0], name=_names(same)) for same in alike.values()]


def _joined(studies: Iterable[Study]) -> list[Study]:
    """One study for all that make the same rows: the largest problem, the batches of each.

    Servers may differ in what the key rounds, or in the batches that they launch.
    """
    alike: dict[TuningKey, list[Study]] = {}
    for study in studies:
        alike.setdefault(studied_key(study.key), []).append(study)
    return [_join(same) if len(same) > 1 else same[0] for same in alike.values()]


def _join(same: Sequence[Study]) -> Study:
    first = same[0]
    problems = sorted(
        (problem for study in same for problem in (study.problem, *study.fills)),
        key=lambda p: (p.max_num_tokens, p.max_num_seqs, p.pages_per_seq, p.num_pages),
    )
    rows = {tuning_key(p, first.chip.name, first.family.name): p for p in problems}
    parts = list({study.workload.digest: study.workload for study in same}.values())
    return replace(
        first,
        name=_names(same),
        problem=problems[-1],
        workload=parts[0] if len(parts) == 1 else combine(parts, [1.0] * len(parts)),
        fills=tuple(problem for problem in rows.values() if problem != problems[-1]),
    )


def _names(same: Sequence[Study]) -> str:
    """The names of all; of many the first, which no other study has."""
    names = list(dict.fromkeys(study.name for study in same))
    if len(names) > _MOST_NAMES:
        return f"{names[0]} and {len(names) - 1} more"
    return " and ".join(names)


def _search(plan: SweepPlan, family: Family) -> Search:
    """The plan's search, for no more configs a problem than the family's rows can have."""
    search, most = plan.search, family.most_configs
    return search if most is None else replace(search, configs=min(most, search.configs))


def _shares(
    plan: SweepPlan, workload: Workload, model_name: str, tp: int, cache: Mapping[str, Any]
) -> list[Share]:
    """Every kind of layers of a model that a kernel family serves.

    Args:
      plan: Has the rest.
      workload: Sets the sizes.
      model_name: Built-in name or path.
      tp: Devices that share the heads.
      cache: `page_size`, `kv_dtype` and `kv_layout` of `problems_for`.
    """
    with _blame(plan, "model"):
        model = load_model(model_name)
    with _blame(plan, "tp" if "tp" in plan.lines else "model"):
        return problems_for(
            model,
            workload=workload,
            tp=tp,
            q_dtype=plan.q_dtype,
            **cache,
        )


def _labels(plan: SweepPlan, chip: str, model: str, share: Share, tp: int) -> list[str]:
    """What tells a study of this plan from the others."""
    labels, problem = [chip, model], share.problem
    labels += [f"page {problem.page_size}"] if len(plan.page_sizes) > 1 else []
    labels += [problem.kv_dtype] if len(plan.kv_dtypes) > 1 else []
    labels += [problem.kv_layout] if len(plan.kv_layouts) > 1 else []
    labels += [f"tp {tp}"] if len(plan.tps) > 1 else []
    # Nothing is said of layers that are as plain as they can be.
    labels += [share.name] if share.name != "full" else []
    return labels


def _server_labels(
    server: Server, differing: Collection[str], share: Share, group: Group
) -> list[str]:
    """What tells a study of a server from the others of the plan, which differ in some flags."""
    labels = [server.chip, server.model]
    for name in FLAGS[2:]:
        if name in differing:
            value = getattr(server, name)
            said = _SAID.get(name, f"{name.replace('_', ' ')} {{}}")
            labels.append(said.format(value))
    labels.append(f"{group.largest.num_tokens} tokens")
    labels += [f"{group.largest.num_seqs} seqs"] if server.bucket_seqs else []
    labels += [share.name] if share.name != "full" else []
    return labels


@contextmanager
def _blame(plan: SweepPlan, key: str) -> Iterator[None]:
    """Gives an error about a person's input the line of the plan's key."""
    line = plan.lines.get(key, str(plan.path))
    try:
        yield
    except RpaTuneError as error:
        if error.where in ("", key):
            error.where = line
        elif error.where.startswith(f"{key}."):  # a place inside the key's own mapping
            error.where = f"{line} ({error.where})"
        raise
    except ValueError as error:
        raise UsageError(str(error), where=line) from error
