"""Programs of predicates: compiled as kernels in worker processes, and evaluated in plain Python.

A program is a nested tuple, so that the parent can make it and the worker can trace it. What it
decides shows in copies: statement `k` copies `2**k` tiles from HBM.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_tune.compile import lower
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import load_chip

NUM_SCALARS = 4
NUM_COPIES = 8
TILE = (8, 128)
TILE_BYTES = 4 * 8 * 128
_SOURCE_TILES = 1 << 14  # too large for XLA to place it in VMEM


def random_program(rng, depth=3):
    """Statements of a random program, a few copies each."""
    return [_statement(rng, depth) for _ in range(rng.randint(2, 3))]


def _statement(rng, depth):
    kind = rng.choice(["copy", "when", "otherwise", "loop"]) if depth else "copy"
    if kind == "copy":
        return ("when", _predicate(rng, 3), [("copy", rng.randrange(NUM_COPIES))])
    body = [_statement(rng, depth - 1) for _ in range(rng.randint(1, 2))]
    if kind == "loop":
        return ("loop", rng.randrange(NUM_SCALARS), body)
    condition = _predicate(rng, 3)
    if kind == "when":
        return ("when", condition, body)
    return ("either", condition, body, [_statement(rng, depth - 1)])


def _predicate(rng, depth):
    kind = rng.choice(["and", "or", "xor", "not", "where", "and", "compare", "constant"])
    if depth == 0 or kind == "compare":
        right = rng.choice([("scalar", rng.randrange(NUM_SCALARS)), rng.randint(-2, 5)])
        return (rng.choice(["lt", "le", "gt", "eq", "ne"]), rng.randrange(NUM_SCALARS), right)
    if kind == "constant":
        return ("constant", rng.random() < 0.7)
    count = {"not": 1, "where": 3}.get(kind, 2)
    return (kind, *(_predicate(rng, depth - 1) for _ in range(count)))


def decide(predicate, scalars):
    """A predicate's value; of Python's scalars or of traced ones."""
    kind, *parts = predicate
    if kind == "constant":
        return jnp.bool_(parts[0])
    if kind in ("lt", "le", "gt", "eq", "ne"):
        left, right = scalars[parts[0]], parts[1]
        right = scalars[right[1]] if isinstance(right, tuple) else right
        return {
            "lt": left < right, "le": left <= right, "gt": left > right,
            "eq": left == right, "ne": left != right,
        }[kind]  # fmt: skip
    values = [decide(part, scalars) for part in parts]
    if kind == "not":
        return jnp.logical_not(values[0])
    if kind == "where":
        return jnp.where(*values)
    return {"and": jnp.logical_and, "or": jnp.logical_or, "xor": jnp.logical_xor}[kind](*values)


def tiles_and_copies(program, scalars):
    """What a program copies, in plain Python."""
    tiles = copies = 0
    for kind, *parts in program:
        if kind == "copy":
            found = [(1 << parts[0], 1)]
        elif kind == "loop":
            found = [
                tiles_and_copies(parts[1], [turn, *scalars[1:]])
                for turn in range(scalars[parts[0]] & 3)
            ]
        else:
            chosen = 1 if decide(parts[0], scalars) else 2
            found = [tiles_and_copies(parts[chosen], scalars)] if chosen < len(parts) else []
        tiles += sum(more for more, _ in found)
        copies += sum(more for _, more in found)
    return tiles, copies


def program_call(program):
    """A kernel that runs a program."""

    def body(scalars_ref, x_hbm, o_ref, buffer, semaphore):
        o_ref[...] = jnp.zeros(TILE, jnp.float32)

        def run(statements, scalars):
            for kind, *parts in statements:
                if kind == "copy":
                    part = pl.ds(0, 1 << parts[0])
                    copy = pltpu.make_async_copy(x_hbm.at[part], buffer.at[part], semaphore)
                    copy.start()
                    copy.wait()
                elif kind == "loop":

                    @pl.loop(0, scalars[parts[0]] & 3)
                    def _(turn, inner=parts[1]):
                        run(inner, [turn, *scalars[1:]])
                else:
                    condition = decide(parts[0], scalars)
                    pl.when(condition)(lambda inner=parts[1]: run(inner, scalars))
                    if kind == "either":
                        otherwise = jnp.logical_not(condition)
                        pl.when(otherwise)(lambda inner=parts[2]: run(inner, scalars))

        run(program, [scalars_ref[i] for i in range(NUM_SCALARS)])

    def function(scalars, x):
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                in_specs=[pl.BlockSpec(memory_space=pltpu.HBM)],
                out_specs=pl.BlockSpec(TILE, lambda *_: (0, 0)),
                scratch_shapes=[
                    pltpu.VMEM((1 << NUM_COPIES, *TILE), jnp.float32),
                    pltpu.SemaphoreType.DMA,
                ],
                grid=(1,),
            ),
            out_shape=jax.ShapeDtypeStruct(TILE, jnp.float32),
            compiler_params=pltpu.CompilerParams(disable_bounds_checks=True),
            name="predicates",
        )(scalars, x)

    return Call(
        function=function,
        arguments=(
            jax.ShapeDtypeStruct((NUM_SCALARS,), jnp.int32),
            jax.ShapeDtypeStruct((_SOURCE_TILES, *TILE), jnp.float32),
        ),
        kernel_name="predicates",
    )


def compile_program(task):
    """The schedule of a program as text."""
    chip, program = task
    return lower.compile_call(program_call(program), load_chip(chip)).bundles.read_text()
