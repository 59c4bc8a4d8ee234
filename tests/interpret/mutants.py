"""Faults in the copies of a kernel, put in where the interpreter starts them and waits for them.

A kernel is traced and compiled once, then run with one wait missing, say. Waits and starts are
those of the traced kernel, so what a change adds is found, too. A mutant is judged by `verify` as
it is, which is given the compiled kernel for the one that it would compile.
"""

import contextlib
import functools
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from jax._src.pallas.mosaic import primitives
from jax._src.pallas.mosaic.interpret import interpret_pallas_call, utils

import rpa_kernels
from rpa_kernels import inputs, reference, verify

KERNELS = str(Path(rpa_kernels.__file__).parent)

# What may happen to a wait. `late` comes at the kernel's end, so that all bytes are waited for.
WAIT_FAULTS = ("missing", "short", "late", "elsewhere")
# What may happen to the start of a copy. Whoever waits for it waits for both.
START_FAULTS = ("twice",)


class Subject:
    """A family on one batch, compiled once for each DMA mode, and run with any one fault.

    Attributes:
      names: (`start` or `wait`, index in the order of tracing) to the functions that lead there.
      num_bytes: The same to what it was for in the last run.
    """

    def __init__(self, family: str, problem: Any, config: Any, batch: Any, target: Any) -> None:
        self.family = rpa_kernels.load_family(family)
        self.case = (problem, config, batch)
        self.target = target
        self.names: dict[tuple[str, int], str] = {}
        self.num_bytes: Counter[tuple[str, int]] = Counter()
        self._compiled: dict[str, Any] = {}
        self._fault: tuple[str | None, int] = (None, -1)
        self._late: list[tuple[Any, ...]] = []
        self._extra: dict[int, int] = defaultdict(int)

    def problems(self, fault: str | None = None, index: int = -1, *, dma_mode: str) -> str:
        """What `verify` finds wrong with a mutant, or raises; empty if nothing."""
        self._fault = (fault, index)
        self._late.clear()
        self._extra.clear()
        self.num_bytes.clear()
        with mock.patch.object(verify, "run_interpreted", self._run), self._patched():
            try:
                report = verify.verify(
                    self.family, *self.case, target=self.target, dma_mode=dma_mode
                )
            except jax.errors.JaxRuntimeError as error:
                return re.findall(r"^\w+Error: (.*)$", str(error), re.MULTILINE)[-1]
        return "; ".join(report.problems)

    def _run(
        self, family: Any, problem: Any, config: Any, target: Any, operands: Any, *, interpret: Any
    ) -> Any:
        """Stands in for `verify.run_interpreted`."""
        q, kv_new = inputs.prepare(operands.queries, operands.keys, operands.values, problem)
        arrays = operands.arrays
        args = (q, kv_new, operands.kv_cache, arrays.kv_lens, arrays.page_indices,
                arrays.cu_q_lens, arrays.distribution)  # fmt: skip
        mode = interpret.dma_execution_mode
        if mode not in self._compiled:
            launch = functools.partial(
                family.launch, problem=problem, config=config, target=target, interpret=interpret
            )
            self.names.clear()
            traced = jax.jit(launch, compiler_options=reference.EXACT_ROUNDING).trace(
                *args, sinks=operands.sinks
            )
            self._keep_traced(traced.jaxpr)
            self._compiled[mode] = traced.lower().compile()
        return self._compiled[mode](*args, sinks=operands.sinks)

    def _keep_traced(self, jaxpr: Any) -> None:
        """Forgets what was traced and thrown away, and refuses copies that were not seen."""
        found = set()
        for eqn in equations(jaxpr):
            if eqn.primitive in (primitives.dma_start_p, primitives.dma_wait_p):
                found.add(_site(eqn.source_info))
        assert None not in found, "a copy that is started or waited for by other means"
        self.names = {site: name for site, name in self.names.items() if site in found}
        assert set(self.names) == found

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        """Lets starts and waits bear their names, and the interpreter do what the fault says."""
        module = interpret_pallas_call
        copy = primitives.AsyncCopyDescriptor
        with contextlib.ExitStack() as stack:
            for owner, name, stand_in in (
                (copy, "start", self._named("start", copy.start)),
                (copy, "wait", self._named("wait", copy.wait)),
                (module, "dma_start", functools.partial(self._start, module.dma_start)),
                (module, "dma_wait", functools.partial(self._wait, module.dma_wait)),
                (
                    module,
                    "_validate",
                    functools.partial(self._end, module.dma_wait, module._validate),
                ),
            ):
                stack.enter_context(mock.patch.object(owner, name, stand_in))
            yield

    def _named(self, kind: str, real: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> None:
            site = (kind, sum(k == kind for k, _ in self.names))
            self.names[site] = _callers()
            with jax.named_scope(f"{kind}-{site[1]}"):
                real(*args, **kwargs)

        return act

    def _start(self, real: Any, token: Any, *args: Any, source_info: Any) -> Any:
        site, size = _site(source_info), _num_bytes(*args[:5])
        self.num_bytes[site] += size
        if self._fault[0] in START_FAULTS and site == ("start", self._fault[1]) and size:
            self._extra[int(args[DST_SEMAPHORE])] += size
            token = real(token, *args, source_info=source_info)
        return real(token, *args, source_info=source_info)

    def _wait(self, real: Any, token: Any, *args: Any, source_info: Any) -> Any:
        device, core, semaphore, size = map(int, args)
        site, (fault, index) = _site(source_info), self._fault
        self.num_bytes[site] += size
        size += self._extra.pop(semaphore, 0)
        if fault in WAIT_FAULTS and site == ("wait", index) and size:
            if fault == "missing":
                return token
            if fault == "late":
                self._late.append((device, core, semaphore, size))
                return token
            if fault == "short":
                size //= 2
            elif fault == "elsewhere":
                semaphore = _neighbour(semaphore)
        return real(token, device, core, semaphore, size, source_info=source_info)

    def _end(self, wait: Any, real: Any, token: Any, *args: Any) -> Any:
        while self._late:
            wait(token, *self._late.pop(), source_info=None)
        return real(token, *args)


# Where a copy's arguments have the semaphore that its end is counted on.
DST_SEMAPHORE = 8


def _site(source_info: Any) -> tuple[str, int] | None:
    """The innermost name that `_named` gave."""
    found = re.findall(r"(start|wait)-(\d+)", str(source_info.name_stack))
    return (found[-1][0], int(found[-1][1])) if found else None


def _num_bytes(device: Any, core: Any, space: Any, buffer: Any, transforms: Any) -> int:
    """Bytes of a copy, by its source."""
    name = interpret_pallas_call.TPU_MEMORY_SPACE_NAMES[int(space)]
    core = interpret_pallas_call._local_core_id_or_zero_if_hbm(int(core), name)
    source = _memory().mem[name, int(buffer), int(device), core]
    shape, rows = source.shape, utils.to_range(jax.tree.map(int, transforms))
    sizes = [1 if isinstance(r, int) else r.stop - r.start for r in rows]
    return math.prod([*sizes, *shape[len(rows) :]]) * source.dtype.itemsize


def _neighbour(semaphore: int) -> int:
    """Another semaphore of the kernel."""
    every = sorted(_memory().sem)
    return every[every.index(semaphore) - 1]


def _memory() -> Any:
    return interpret_pallas_call._get_shared_memory()


def _callers() -> str:
    """Functions of the kernel that are being traced, the outermost first."""
    names, frame = [], sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_qualname.replace(".<locals>", "")
        if frame.f_code.co_filename.startswith(KERNELS) and "<lambda>" not in name:
            names.append(name.removesuffix("._"))
        frame = frame.f_back
    inner = [name for name in dict.fromkeys(reversed(names)) if "." in name]
    return " > ".join(inner)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of inner ones too."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(leaf):
                yield from equations(leaf)


def _is_jaxpr(leaf: Any) -> bool:
    return hasattr(getattr(leaf, "jaxpr", leaf), "eqns")
