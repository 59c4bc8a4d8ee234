"""The object a serving engine holds: tables loaded once, a plan per step in microseconds."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.slots import SLOTS, families_of, slot_of
from rpa_kernels.target import Target
from rpa_tune.dispatch.call import Arrays
from rpa_tune.dispatch.mla_call import LatentArrays
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.dispatch.runtime import Executables, attend, attend_latent
from rpa_tune.dispatch.select import Choice, OnMiss, Source, select
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import Chip, chip_of_device_kind, load_chip
from rpa_tune.known_versions import faults
from rpa_tune.libtpu_args import args_here, difference
from rpa_tune.models.buckets import Engine
from rpa_tune.provenance import versions
from rpa_tune.tables.key import TuningKey, tuning_key
from rpa_tune.tables.reader import Tables, load_tables, shipped_folder
from rpa_tune.tables.step import Step

if TYPE_CHECKING:
    from rpa_tune.artifact.file import Artifact

_log = logging.getLogger("rpa_tune.dispatch")
_ABSENT = -1


class _Menu:
    """What one problem may launch: its choices, and every plan made from them so far."""

    def __init__(self, problem: Problem, target: Target, choices: dict[str, Choice]) -> None:
        self.problem = problem
        self.target = target
        self.choices = choices
        # Mixed takes over what no other family serves, from one place in the batch to its end: when
        # it has the decode sequences, it has the prefill ones as well.
        if "decode" not in choices:
            choices.pop("prefill", None)
        self.by_slot = {slot_of(family): family for family in choices}
        self._plans: dict[tuple[int, ...], LaunchPlan] = {}

    def choice(self, slot: str) -> Choice | None:
        """What serves a slot by itself."""
        return self.choices.get(self.by_slot.get(slot, ""))

    def plan(self, picks: tuple[int, ...]) -> LaunchPlan:
        """The plan with config `picks[i]` for slot i; the same object every time."""
        plan = self._plans.get(picks)
        if plan is None:
            launches = tuple(
                Launch(family=family, config=choice.configs[pick], why=choice.why)
                for slot, pick in zip(SLOTS, picks, strict=True)
                if pick != _ABSENT and (choice := self.choices[family := self.by_slot[slot]])
            )
            plan = LaunchPlan(problem=self.problem, target=self.target, launches=launches)
            self._plans[picks] = plan
        return plan


class Dispatcher:
    """Chooses configs from tables and runs attention with them.

    `plan` is a pure function of the problem and the step's lengths, so every host of a mesh
    chooses alike.
    """

    def __init__(
        self,
        chip: Chip,
        tables: Tables,
        *,
        on_miss: OnMiss = "nearest",
        compiled: Executables | None = None,
    ) -> None:
        """Keeps the tables, and executables if any; see `load_dispatcher`."""
        self.chip = chip
        self.tables = tables
        self.on_miss: OnMiss = on_miss
        self.compiled = compiled
        self._menus: dict[Problem, _Menu] = {}
        self._logged: set[TuningKey] = set()
        self._other_flags: set[str] = set()

    def plan(self, problem: Problem, step: Step) -> LaunchPlan:
        """The kernels for one step; families without sequences are not launched.

        Args:
          problem: Static shapes of the call.
          step: Lengths of the step's sequences, from the host.

        Raises:
          ValueError: No kernel can serve the problem on this chip.
          TableError: No row, and the dispatcher was loaded with `on_miss="error"`.
        """
        menu = self._menus.get(problem) or self._menu(problem)
        mixed = step.mixed
        picks = [_ABSENT, _ABSENT, _ABSENT]
        for place, slot in enumerate(SLOTS[:2]):
            lengths = step.lengths(slot)
            if not lengths.num_seqs:
                continue
            if choice := menu.choice(slot):
                picks[place] = choice.row.pick(lengths) if choice.row else 0
            else:
                mixed += lengths
        if mixed.num_seqs:
            row = menu.choices[menu.by_slot["mixed"]].row
            picks[2] = row.pick(mixed) if row else 0
        return menu.plan(tuple(picks))

    def plans(self, problem: Problem, engine: Engine | None = None) -> list[LaunchPlan]:
        """Every plan that some step can get, for warm-up; fewest launches first.

        Args:
          problem: Static shapes of the call.
          engine: Whose buckets to plan for, instead of this one problem: its shapes with every
            mix of families that can land in them.
        """
        if engine is None:
            return self._plans(problem)
        return [
            plan
            for bucket in engine.buckets(problem)
            for plan in self._plans(bucket.problem)
            if bucket.can_meet(plan.families)
        ]

    def _plans(self, problem: Problem) -> list[LaunchPlan]:
        menu = self._menus.get(problem) or self._menu(problem)
        options = [
            [_ABSENT, *range(len(choice.configs) if (choice := menu.choice(slot)) else 0)]
            for slot in SLOTS
        ]
        picks = [p for p in itertools.product(*options) if any(pick != _ABSENT for pick in p)]
        plans = [menu.plan(p) for p in picks]
        return sorted(plans, key=lambda plan: len(plan.launches))

    def choices(self, problem: Problem) -> dict[str, Choice]:
        """What each family that can serve `problem` was given, and why."""
        return dict((self._menus.get(problem) or self._menu(problem)).choices)

    def __call__(
        self,
        *arrays: jax.Array,
        plan: LaunchPlan,
        tree_mask: jax.Array | None = None,
        **options: Any,
    ) -> Any:
        """Runs a plan; see `attention.ragged_paged_attention`, or that for latents."""
        if plan.problem.is_latent:
            latent = LatentArrays(*arrays)
            return attend_latent(latent, plan=plan, compiled=self.compiled, **options)
        given = Arrays(*arrays)._replace(tree_mask=tree_mask)
        return attend(given, plan=plan, compiled=self.compiled, **options)

    def _menu(self, asked: Problem) -> _Menu:
        """Selects for every family, and logs each key once."""
        problem = asked.without_idle_window()  # as calls come (`call.problem_of`)
        choices: dict[str, Choice] = {}
        refusals = []
        for family in families_of(problem):
            choice = select(problem, self.chip.target, family, self.tables, on_miss=self.on_miss)
            key = tuning_key(problem, self.chip.name, family)
            is_new = key not in self._logged
            self._logged.add(key)
            if isinstance(choice, Infeasible):
                refusals.append(f"{family}: {choice}")
                if is_new:
                    _log.warning("%s cannot serve this problem: %s", family, choice)
                continue
            choices[family] = choice
            if is_new:
                self._say_other_flags(choice)
                level = logging.INFO if choice.source is Source.EXACT else logging.WARNING
                _log.log(level, "%s on %s: %s", family, self.chip.name, choice.why)
        # Mixed serves whatever else is there.
        needed = ("decode", "mixed") if problem.has_tree_mask else families_of(problem)[-1:]
        if any(family not in choices for family in needed):
            raise ValueError(
                f"no kernel can serve this problem on {self.chip.name}: {'; '.join(refusals)}"
            )
        menu = _Menu(problem, self.chip.target, choices)
        self._menus[asked] = menu
        return menu

    def _say_other_flags(self, choice: Choice) -> None:
        """Warns, once for each set of flags, of rows whose libtpu had others than this process."""
        made_with = choice.row.evidence.libtpu_args if choice.row else args_here()
        if (other := difference(made_with, args_here())) and made_with not in self._other_flags:
            self._other_flags.add(made_with)
            _log.warning("rows of %s are used that were %s", self.chip.name, other)


def load_dispatcher(
    chip: str | None = None,
    tables: Tables | Path | str | Sequence[Path | str] | None = None,
    on_miss: OnMiss = "nearest",
    artifact: "Artifact | Path | str | None" = None,
) -> Dispatcher:
    """Loads tables and makes a dispatcher.

    Args:
      chip: Name in the chip table, or None for the chip of the first JAX device.
      tables: Table folders laid over the shipped ones (later ones win), or `Tables` to use alone.
      on_miss: Without an exact row: `nearest`, `heuristic`, or `error`.
      artifact: What `rpa-tune compile` wrote, to be run instead of compiling, outside of `jit`; it
        holds machine code, so name one from a trusted place, best as `Artifact(path, sha256=...)`.
        One made for another chip, jax, libtpu or kernel is not used, and one warning says so.

    Raises:
      ArtifactError: The artefact is damaged, or not one.
      UsageError: Unknown chip, or None on a machine without a TPU; unknown `on_miss`.
      TableError: A table does not parse.
    """
    if on_miss not in ("nearest", "heuristic", "error"):
        raise UsageError(f'on_miss={on_miss!r} is not "nearest", "heuristic" or "error"')
    found = load_chip(chip) if chip is not None else _attached_chip()
    for fault in faults(versions(), found.name):
        if fault.chips:  # the others are said when the package is imported
            _log.warning("%s; cure: %s", fault.text(versions()[fault.package] or ""), fault.cure)
    if not isinstance(tables, Tables):
        if tables is None:
            overlays: Sequence[Path | str] = ()
        else:
            overlays = [tables] if isinstance(tables, Path | str) else tables
        folders = [shipped_folder(), *(Path(folder) for folder in overlays)]
        tables = load_tables(folders, chip=found.name)
    compiled = None
    if artifact is not None:
        # Here, because a server without an artefact need not pay for the import.
        from rpa_tune.artifact.compiled import load_compiled
        from rpa_tune.artifact.file import Artifact

        opened = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        compiled = load_compiled(opened, found)
    return Dispatcher(found, tables, on_miss=on_miss, compiled=compiled)


def _attached_chip() -> Chip:
    device = jax.devices()[0]
    if device.platform != "tpu":
        raise UsageError(
            f"the first JAX device is {device.device_kind!r}, not a TPU",
            hint='name the chip: load_dispatcher(chip="v6e")',
        )
    return chip_of_device_kind(device.device_kind)
