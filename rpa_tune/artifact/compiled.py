"""Runs the executables of an artefact in place of compiling; where it cannot, it says so once.

An executable is a whole program on one device. It cannot become part of a caller's own `jit` or
`shard_map`, and arrays spread over several devices are not its business: such calls are compiled
as ever. Run on CPU devices only so far: loading on a TPU is not yet run.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

from rpa_kernels import FAMILIES, load_family
from rpa_kernels.problem import problem_from_dict
from rpa_kernels.target import Target
from rpa_tune.artifact.file import Artifact, Executable, Manifest
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.errors import ArtifactError
from rpa_tune.hw.chip import Chip
from rpa_tune.libtpu_args import VARIABLE, args_here
from rpa_tune.provenance import kernel_digest, launch_digest, versions

_log = logging.getLogger("rpa_tune.dispatch")
_PACKAGES = ("jax", "jaxlib", "libtpu")


class CompiledPlans:
    """Executables by plan, each loaded when it is first run."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        """Reads which plans there are.

        Args:
          artifact: Fits this host; see `load_compiled`.
          target: The chip's limits.

        Raises:
          ArtifactError: The manifest lists what is no plan.
        """
        self._artifact = artifact
        self._executables: dict[LaunchPlan, Executable] = {}
        for executable in artifact.manifest.executables:
            try:
                self._executables[plan_of(executable, target)] = executable
            except ValueError as error:
                where = f"{artifact.path}: {executable.name}"
                raise ArtifactError(f"no launch plan: {error}", where=where) from error
        self._loaded: dict[tuple[LaunchPlan, jax.Device], Any] = {}
        self._said: set[str] = set()
        self._missed: set[LaunchPlan] = set()
        self._is_broken = False

    @property
    def plans(self) -> frozenset[LaunchPlan]:
        """The plans that need no compile."""
        return frozenset(self._executables)

    def run(self, plan: LaunchPlan, arguments: Sequence[Any]) -> tuple[jax.Array, ...] | None:
        """Runs a plan's executable.

        Args:
          plan: For the very problem of the arguments.
          arguments: Arrays of the call, without a sink when there is none.

        Returns:
          What the call returns, or None when it must be compiled here.

        Raises:
          ArtifactError: The file was changed since it was opened.
        """
        if self._is_broken or not plan.launches:
            return None
        found = self._find(plan, arguments)
        if found is None:
            return None
        loaded, device = found
        placed = [x if isinstance(x, jax.Array) else jax.device_put(x, device) for x in arguments]
        try:
            results = loaded.execute_sharded(placed)
        except jax.errors.JaxRuntimeError as error:
            if any(array.is_deleted() for array in placed):
                raise  # donated and gone: there is nothing left to compute from
            self._give_up(f"an executable does not run: {error!s:.200}")
            return None
        return tuple(array for (array,) in results.disassemble_into_single_device_arrays())

    def _find(self, plan: LaunchPlan, arguments: Sequence[Any]) -> tuple[Any, jax.Device] | None:
        """The loaded executable and its device, or None when there is none, which is said."""
        if any(isinstance(argument, jax.core.Tracer) for argument in arguments):
            self._say(
                "executables cannot be part of a traced function (docs/serving.md: your own jit)"
            )
            return None
        executable = self._executables.get(plan)
        if executable is None:
            if plan not in self._missed:  # the words cost more than a step
                self._missed.add(plan)
                self._say(f"no executable of {_describe(plan, self._executables)}")
            return None
        arrays = [argument for argument in arguments if isinstance(argument, jax.Array)]
        devices = set().union(*(array.devices() for array in arrays))
        if len(devices) != 1:
            self._say(f"arrays are on {len(devices)} devices, not one")
            return None
        (device,) = devices
        loaded = self._loaded.get((plan, device))
        if loaded is None:
            content = self._artifact.read(executable)
            try:
                loaded = load_executable(content, device)
            except (jax.errors.JaxRuntimeError, AttributeError, TypeError) as error:
                self._give_up(f"an executable does not load: {error!s:.200}")
                return None
            self._loaded[plan, device] = loaded
        return loaded, device

    def _give_up(self, why: str) -> None:
        """Uses no executable from here on: what failed once would fail at every step."""
        self._is_broken = True
        self._say(why)

    def _say(self, why: str) -> None:
        """Warns that kernels are compiled here, once for each reason."""
        if why not in self._said:
            self._said.add(why)
            _log.warning("%s: %s; compiling instead", self._artifact.path, why)


def load_compiled(artifact: Artifact, chip: Chip) -> CompiledPlans | None:
    """The executables of an artefact that was made for this host.

    Returns:
      None, after one warning that names every difference, when it was made for another.

    Raises:
      ArtifactError: The manifest lists what is no plan.
    """
    if wrong := mismatches(artifact.manifest, chip, jax.devices()[0]):
        _log.warning(
            "%s is not used, kernels are compiled here: %s", artifact.path, "; ".join(wrong)
        )
        return None
    return CompiledPlans(artifact, chip.target)


def mismatches(manifest: Manifest, chip: Chip, device: jax.Device) -> list[str]:
    """What differs between where an artefact was made for and here; empty when it fits."""
    pairs = [("chip", manifest.chip, chip.name)]
    if device.device_kind not in chip.device_kinds:  # one chip may have two names
        pairs.append(("device kind", manifest.device_kind, device.device_kind))
    for what, theirs, ours in (
        ("", manifest.versions, package_versions(args_here())),
        ("sources of ", manifest.sources, source_digests()),
    ):
        for name in sorted({*theirs, *ours}):
            pairs.append((f"{what}{name}", theirs.get(name, "none"), ours.get(name, "none")))
    return [f"{what} {there} there, {here} here" for what, there, here in pairs if there != here]


def package_versions(libtpu_args: str = "") -> dict[str, str]:
    """Versions that an executable depends on, and the compiler's flags if it was given some.

    Args:
      libtpu_args: See `libtpu_args.py`.
    """
    flags = {VARIABLE: libtpu_args} if libtpu_args else {}
    return {name: versions()[name] or "none" for name in _PACKAGES} | flags


def source_digests() -> dict[str, str]:
    """Digests of the sources that an executable is made of."""
    return {family: kernel_digest(family) for family in FAMILIES} | {"launch": launch_digest()}


def plan_of(executable: Executable, target: Target) -> LaunchPlan:
    """The plan that a manifest describes.

    Raises:
      ValueError: An unknown family, a field that is missing or unknown, or values that cannot be.
    """
    launches = []
    for launch in executable.launches:
        family, config = launch["family"], launch["config"]
        if family not in FAMILIES:
            raise ValueError(f"family {family!r:.40} is not one of {', '.join(FAMILIES)}")
        config = load_family(family).config_from_dict(dict(config))
        launches.append(Launch(family=family, config=config, why="artefact"))
    problem = problem_from_dict(executable.problem)
    return LaunchPlan(problem=problem, target=target, launches=tuple(launches))


def load_executable(content: bytes, device: jax.Device) -> Any:
    """A serialised executable, ready to run on a device.

    `jax.experimental.serialize_executable` would unpickle; the client's own call does not. What was
    compiled for the first device of a host would run on that one only: the options say where.
    """
    options = xla_client.CompileOptions()
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    devices = xla_client.DeviceList((device,))
    return device.client.deserialize_executable(content, devices, options)


def _describe(plan: LaunchPlan, known: Iterable[LaunchPlan]) -> str:
    """A plan in one line, and in what the nearest of those that are there differs."""
    problem, ours = plan.problem, _facts(plan)
    text = f"{'+'.join(plan.families)} for {problem.max_num_tokens} tokens"
    changes = [
        [f"{name} {theirs} instead of {ours.get(name)}"
         for name, theirs in _facts(other).items() if theirs != ours.get(name)]
        for other in known
    ]  # fmt: skip
    nearest: list[str] = min(changes, key=len, default=[])
    return f"{text} (nearest: {', '.join(nearest)})" if nearest else text


def _facts(plan: LaunchPlan) -> dict[str, Any]:
    """Everything a plan's executable depends on, by name."""
    return {
        **asdict(plan.problem),
        "families": "+".join(plan.families),
        **{f"{launch.family} config": launch.config for launch in plan.launches},
    }
