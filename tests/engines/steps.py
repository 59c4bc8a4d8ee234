"""Notes which kernels are in the steps that an engine runs, in the engine's own process."""

from collections import Counter
from typing import Any, ClassVar


class Step:
    """A compiled step of an engine, which notes its kernels whenever it runs."""

    ran: ClassVar[Counter[tuple[str, ...]]] = Counter()

    def __init__(self, jitted: Any) -> None:
        self.jitted = jitted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The trace is the one that the call uses: jax keeps it.
        names = sorted(set(kernels(self.jitted.trace(*args, **kwargs).jaxpr.jaxpr)))
        result = self.jitted(*args, **kwargs)
        self.ran[tuple(names)] += 1
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jitted, name)

    @classmethod
    def record(cls) -> list[Any]:
        """[names of kernels, steps that ran with these] for JSON."""
        return [[list(names), count] for names, count in cls.ran.items()]


def kernels(jaxpr: Any) -> Any:
    """Names of the Pallas calls, however deep."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn.params["name"]
            continue
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from kernels(part)


def noting_steps(*names: str) -> None:
    """From now on `jax.jit` of a function of such a name makes a `Step`.

    Options of the TPU compiler are dropped on the way: a CPU refuses them.
    """
    import jax

    real = jax.jit

    def jit(*args: Any, compiler_options: Any = None, **rest: Any) -> Any:
        jitted = real(*args, **rest)
        is_step = args and getattr(args[0], "__name__", "") in names
        return Step(jitted) if is_step else jitted

    jax.jit = jit
