"""One study: a family, a problem, a chip and a workload. A plan is a list of them."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.errors import RpaTuneError, UsageError
from rpa_tune.families.family import Family
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.models.buckets import Shape
from rpa_tune.models.catalog import Share, load_model, problems_for
from rpa_tune.provenance import provenance
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import Space, build_axes, build_space
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.notes import StudyPlan
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.sampler import Search
from rpa_tune.sweep.sampler_choice import MAX_KRIGING_POOL, sampler_identity
from rpa_tune.sweep.shapes import problem_of_shape, shape_workloads
from rpa_tune.tables.key import TuningKey, tuning_key
from rpa_tune.workload.workload import Workload, load_workload


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
    """

    name: str
    family: Family
    problem: Problem
    chip: Chip
    workload: Workload
    overrides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    search: Search = field(default_factory=Search)

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

    def note(self) -> StudyPlan:
        """What the store keeps of it before it begins."""
        heuristic = self.heuristic()
        return StudyPlan(
            name=self.name,
            study=self.digest,
            num_evaluations=self.search.simulate,
            heuristic=None if isinstance(heuristic, Infeasible) else asdict(heuristic),
            stamp=stamp_of(provenance(self.family.digest)),
            sampler=self.sampler(),
        )

    def candidate(self, config: Any) -> Candidate:
        """The candidate of one config."""
        return Candidate(
            family=self.family,
            problem=self.problem,
            config=config,
            chip=self.chip,
            workload=self.workload.digest,
        )


def build_studies(plan: SweepPlan) -> list[Study]:
    """Crosses the plan's lists; every kind of layers of a model has studies of its own.

    Studies of one problem become one, under the names of all models that have it.

    Raises:
      UsageError: An unknown model or workload, heads that `tp` does not divide, or a family that
        the workload never launches; with the plan's file and line.
    """
    studies = []
    families = [load_family(name) for name in plan.families]
    chips = [load_chip(name) for name in plan.chips]
    for page_size in plan.page_sizes:
        with _blame(plan, "workload"):
            workload = load_workload(plan.workload, page_size=page_size)
            judged = _judged_on(plan, families, workload, page_size)
        for chip, model, tp, kv_dtype, kv_layout in itertools.product(
            chips, plan.models, plan.tps, plan.kv_dtypes, plan.kv_layouts
        ):
            cache = {"page_size": page_size, "kv_dtype": kv_dtype, "kv_layout": kv_layout}
            found = _shares(plan, workload, model, tp, cache)
            for share, (shape, batches) in itertools.product(found, judged):
                problem = share.problem
                if plan.server is not None and shape is not None:
                    problem = problem_of_shape(problem, plan.server, shape)
                with _blame(plan, "page_size"):
                    chip.require_room(page_bytes=problem.page_bytes, num_seqs=problem.max_num_seqs)
                labels = _labels(plan, chip.name, model, replace(share, problem=problem), tp)
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
                    for family in families
                ]
    return _merged(studies)


def _merged(studies: list[Study]) -> list[Study]:
    """One study for each question, named after all that ask it."""
    alike: dict[str, list[Study]] = {}
    for study in studies:
        alike.setdefault(study.digest, []).append(study)
    return [
        replace(same[0], name=" and ".join(dict.fromkeys(study.name for study in same)))
        for same in alike.values()
    ]


def _judged_on(
    plan: SweepPlan, families: Sequence[Family], workload: Workload, page_size: int
) -> list[tuple[Shape | None, Mapping[str, Workload]]]:
    """Family -> its batches, for each shape of the plan's server; one entry without a server."""
    with _blame(plan, "families"):
        if plan.server is None:
            return [(None, {f.name: workload.for_family(*f.slots) for f in families})]
        found = shape_workloads(plan.workload, plan.server, page_size=page_size, families=families)
    return [(each.shape, each.batches) for each in found]


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
    server, page_size = plan.server, cache["page_size"]
    with _blame(plan, "tp" if "tp" in plan.lines else "model"):
        return problems_for(
            model,
            workload=workload,
            tp=tp,
            q_dtype=plan.q_dtype,
            max_context_tokens=server.pages_per_seq(page_size) * page_size if server else None,
            **cache,
        )


def _labels(plan: SweepPlan, chip: str, model: str, share: Share, tp: int) -> list[str]:
    """What tells a study of this plan from the others."""
    labels, problem = [chip, model], share.problem
    labels += [f"page {problem.page_size}"] if len(plan.page_sizes) > 1 else []
    labels += [problem.kv_dtype] if len(plan.kv_dtypes) > 1 else []
    labels += [problem.kv_layout] if len(plan.kv_layouts) > 1 else []
    labels += [f"tp {tp}"] if len(plan.tps) > 1 else []
    labels += [f"{problem.max_num_tokens} tokens"] if plan.server else []
    labels += [f"{problem.max_num_seqs} seqs"] if plan.server and plan.server.bucket_seqs else []
    # Nothing is said of layers that are as plain as they can be.
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
