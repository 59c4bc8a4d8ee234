"""The steps that advice is about: the same requests, served with every page size."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.models.server import Server
from rpa_tune.workload.batches import WeightedBatch
from rpa_tune.workload.build import Served, condense, serve
from rpa_tune.workload.spec import overlay, read_spec
from rpa_tune.workload.workload import (
    Workload,
    load_workload,
    requests_of,
)

# Steps that stand for all. Each is simulated under every set of parameters; sweeps take 16.
NUM_STEPS = 8


class Steps:
    """The steps of a server's workload, by page size.

    Lengths are the same whatever the page size; the tables of pages are those of an engine with
    such pages. A workload that is not served (a recording, stored batches) is what it is.
    """

    def __init__(
        self,
        workload: str | Mapping[str, Any],
        server: Server,
        clock: Mapping[str, float] | None = None,
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Serves nothing yet.

        Args:
          workload: What `load_workload` takes.
          server: Its limits and pace, which replace those of the workload's own engine.
          clock: Another pace than the server's, as `Roofline.clock` has it.
          said: Takes a line whenever the requests were served, which takes seconds.
        """
        self._workload, self._server, self._said = workload, server, said
        self._knobs = server.knobs | ({"step_time": dict(clock)} if clock else {})
        self._kept: dict[int, Workload] = {}
        self._chosen: tuple[Served, tuple[int, ...], tuple[float, ...]] | None = None

    def at(self, page_size: int) -> Workload:
        """The steps with pages of a size.

        Raises:
          UsageError: An unknown workload, or steps that the server cannot run.
          TraceError: A bad file.
        """
        if page_size not in self._kept:
            mapping = requests_of(self._workload, page_size)
            found = (
                load_workload(self._workload, page_size=page_size)
                if mapping is None
                else self._served(mapping, page_size)
            )
            self._kept[page_size] = self._within_limits(found)
        return self._kept[page_size]

    def _served(self, mapping: Mapping[str, Any], page_size: int) -> Workload:
        changes: dict[str, Any] = {"engine": self._knobs, "compress": {"batches": NUM_STEPS}}
        spec = read_spec(overlay(mapping, changes), page_size=page_size)
        served = serve(spec, ranks=self._server.ranks)
        self._said(f"served with pages of {page_size} tokens: {served.num_all_steps:,} steps")
        if self._chosen is None:
            build = condense(served)
            self._chosen = served, build.compression.indices, build.compression.weights
            return build.workload
        first, indices, weights = self._chosen
        if not _alike(first, served, indices):
            return condense(served).workload
        return Workload(
            name=served.spec.name,
            source=served.spec.source,
            batches=tuple(
                WeightedBatch(
                    batch=served.steps[i].batch(page_seed=i, block_size=page_size), weight=weight
                )
                for i, weight in zip(indices, weights, strict=True)
            ),
        )

    def _within_limits(self, found: Workload) -> Workload:
        """The steps, or why the server has none such.

        Raises:
          UsageError: A step is larger than any of the server's.
        """
        server = self._server
        limits = {
            "max_num_seqs": (found.max_num_seqs, server.max_num_seqs),
            "max_num_batched_tokens": (found.max_num_tokens, server.max_num_batched_tokens),
            "max_model_len": (found.max_context_tokens, server.max_model_len),
        }
        for name, (has, most) in limits.items():
            if has > most:
                raise UsageError(
                    f"workload {found.name!r} has a step of {has:,}, more than {name}={most:,}",
                    hint="give a workload of requests, which are served within the server's limits",
                )
        # One family for all that are no decodes: prefill does what mixed does.
        batches = tuple(replace(wb, batch=replace(wb.batch, num_prefill=0)) for wb in found.batches)
        name = self._workload if isinstance(self._workload, str) else found.name
        return replace(found, name=name, batches=batches)


def _alike(first: Served, other: Served, indices: tuple[int, ...]) -> bool:
    """Whether the chosen steps have the same lengths in both."""
    if len(first.steps) != len(other.steps):
        return False
    return all(
        (first.steps[i].q_lens.tolist(), first.steps[i].kv_lens.tolist())
        == (other.steps[i].q_lens.tolist(), other.steps[i].kv_lens.tolist())
        for i in indices
    )
