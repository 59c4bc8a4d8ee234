"""Device times of launches, read from a JAX profile. No TensorFlow.

On a TPU the profile has one event per operation, timed by the chip itself. On a CPU there is no
such thing as a kernel's event; what the XLA threads did inside each launch's annotation stands in
for it, so that everything around the chip can be tested without one.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rpa_tune.errors import DeviceError

# Source: plane and line names of XLA's profiler (xplane_schema).
_TPU_PLANE = re.compile(r"/device:TPU:\d+$")
_OPS_LINE = "XLA Ops"
_HOST_PLANE = "/host:CPU"
_XLA_THREADS = ("tf_XLAPjRtCpuClient", "tf_XLAExecute", "tf_XLAEigen")
_BOOKKEEPING = ("end: ", "ThreadpoolListener::", "ThunkExecutor::", "SlinkyThreadPool::")


class Span(NamedTuple):
    """An interval of time, in nanoseconds."""

    start_ns: float
    end_ns: float


def read_profile(folder: Path) -> Any:
    """The one profile in a folder that `jax.profiler.trace` wrote.

    Raises:
      DeviceError: None, or more than one.
    """
    import jax

    paths = list(folder.rglob("*.xplane.pb"))
    if len(paths) != 1:
        raise DeviceError(f"expected one profile, found {len(paths)}", where=str(folder))
    return jax.profiler.ProfileData.from_file(str(paths[0]))


def launch_times_ns(profile: Any, annotation: str, kernel_name: str) -> list[float]:
    """Device time of every launch of a kernel, in launch order, nanoseconds.

    Args:
      profile: `jax.profiler.ProfileData`.
      annotation: Name of the annotation around each launch; used off TPUs.
      kernel_name: `name=` of the Pallas call; used on TPUs.

    Raises:
      DeviceError: The profile shows nothing of it.
    """
    planes = list(profile.planes)
    tpus = [plane for plane in planes if _TPU_PLANE.search(plane.name)]
    if tpus:
        times = [time for plane in tpus for time in _kernel_times(plane, kernel_name)]
    else:
        times = _host_times(planes, annotation)
    if not times:
        raise DeviceError(
            f"the profile shows no launch of {kernel_name!r}",
            hint=f"planes: {', '.join(plane.name for plane in planes)}",
        )
    return times


def _kernel_times(plane: Any, kernel_name: str) -> Iterable[float]:
    """Times of one kernel on one TPU core, whose events are named by the HLO instruction."""
    wanted = re.compile(rf"%?{re.escape(kernel_name)}(\.\d+)?(\s*=.*)?", re.DOTALL)
    events = [
        event
        for line in plane.lines
        if line.name == _OPS_LINE
        for event in line.events
        if wanted.fullmatch(event.name)
    ]
    return [event.duration_ns for event in sorted(events, key=lambda event: event.start_ns)]


def _host_times(planes: Sequence[Any], annotation: str) -> list[float]:
    """Time during which any XLA thread worked, inside each annotation."""
    launches: list[Span] = []
    work: list[Span] = []
    for plane in planes:
        if plane.name != _HOST_PLANE:
            continue
        for line in plane.lines:
            is_xla = line.name.startswith(_XLA_THREADS)
            for event in line.events:
                span = Span(event.start_ns, event.start_ns + event.duration_ns)
                if event.name == annotation:
                    launches.append(span)
                elif is_xla and not event.name.startswith(_BOOKKEEPING):
                    work.append(span)
    return [covered_ns(_clip(work, launch)) for launch in sorted(launches)]


def _clip(spans: Iterable[Span], window: Span) -> list[Span]:
    """The parts of spans that lie in a window."""
    clipped = (
        Span(max(span.start_ns, window.start_ns), min(span.end_ns, window.end_ns)) for span in spans
    )
    return [span for span in clipped if span.end_ns > span.start_ns]


def covered_ns(spans: Iterable[Span]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
