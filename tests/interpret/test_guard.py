"""The guard: what falls back, what is compared, what a difference does; on functions made here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from rpa_tune.interop.guard import Call, Guard

KEY = "8/2 heads of 128"


def engine(q, cache, kv_lens, cu_q_lens, distribution):
    """A stand-in for attention: any pair of results will do."""
    del kv_lens, cu_q_lens, distribution
    return q * 2, cache + 1


def off(which, by, row=0):
    """The engine's function with one number of the output or of the cache another."""

    def ours(q, cache, *lengths):
        out, cache = engine(q, cache, *lengths)
        if which == "out":
            return out.at[row, 0, 0].add(by), cache
        return out, cache.at[0, 0].add(by)

    return ours


def arrays():
    lengths = (
        np.array([5, 9], np.int32),
        np.array([0, 1, 4], np.int32),
        np.array([1, 1, 2], np.int32),
    )
    return (jnp.ones((8, 2, 4)), jnp.zeros((3, 4)), *map(jnp.asarray, lengths))


def run(guard, ours, *, times=1, compiles=False):
    """Calls in one traced program, as an engine's steps are; the results of the last."""
    call = Call(key=KEY, plans=[], ours=ours, theirs=engine, lengths=(2, 3, 4), compiles=compiles)
    step = jax.jit(lambda *given: guard.run(call, given))
    for _ in range(times):
        results = jax.block_until_ready(step(*arrays()))
    jax.effects_barrier()
    return results


def test_without_a_shadow_nothing_is_added_to_the_program():
    call = Call(key=KEY, plans=[], ours=engine, theirs=off("out", 1), lengths=(2, 3, 4))
    plain = jax.make_jaxpr(engine)(*arrays())
    assert str(
        jax.make_jaxpr(lambda *a: Guard(compile_first=False).run(call, a))(*arrays())
    ) == str(plain)


@pytest.mark.parametrize(
    ("given", "times", "compared"),
    [({"shadow_calls": 2}, 5, 2), ({"shadow_share": 0.5}, 6, 3),
     ({"shadow_calls": 1, "shadow_share": 0.25}, 8, 3), ({"shadow_share": 1.0}, 2, 2)],
)  # fmt: skip
def test_so_many_calls_are_compared(given, times, compared):
    guard = Guard(**given)
    out, cache = run(guard, off("out", 1.0, row=6), times=times)  # a row past the last sequence
    assert guard.compared == {KEY: compared}
    assert guard.refused == {}
    assert float(cache[0, 0]) == 1
    assert out.shape == (8, 2, 4)


@pytest.mark.parametrize(
    ("which", "by"), [("out", 0.5), ("out", float("nan")), ("cache", 1e-3), ("cache", float("nan"))]
)
def test_a_difference_returns_the_engines_answer_and_ends_ours(which, by, caplog):
    guard = Guard(shadow_calls=1)
    out, cache = run(guard, off(which, by), times=3)
    assert float(out[0, 0, 0]) == 2
    assert float(cache[0, 0]) == 1
    assert guard.compared == {KEY: 1}
    assert list(guard.refused) == [KEY]
    assert "key: 8/2 heads of 128" in caplog.text
    assert "lengths: q [1, 3], kv [5, 9], distribution [1, 1, 2]" in caplog.text
    assert caplog.text.count("the engine's own kernel serves") == 1


def test_a_difference_within_the_bound_is_none():
    guard = Guard(shadow_calls=1)
    out, _ = run(guard, off("out", 2 * 2.0**-9))
    assert float(out[0, 0, 0]) == 2 + 2 * 2.0**-9  # ours
    assert guard.refused == {}


def broken(*given):
    raise ValueError("no kernel can serve this\nand more")


def test_what_ours_refuses_is_the_engines_once_and_for_all(caplog):
    guard = Guard()
    for _ in range(2):
        out, _ = run(guard, broken)
    assert float(out[0, 0, 0]) == 2
    assert guard.refused == {KEY: "ValueError: no kernel can serve this"}
    assert len(caplog.records) == 1
    with pytest.raises(ValueError, match="no kernel"):
        run(Guard(fallback=False), broken)


def needs_a_tpu(q, cache, *lengths):
    """A kernel that traces here and does not compile."""
    copy = pl.pallas_call(
        lambda x, o: o.__setitem__(..., x[...]), out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype)
    )
    return copy(q) * 2, cache + 1


def test_what_does_not_compile_is_noticed_before_the_engines_program():
    guard = Guard()
    out, _ = run(guard, needs_a_tpu, compiles=True)
    assert float(out[0, 0, 0]) == 2
    assert "interpret" in guard.refused[KEY]
    with pytest.raises(ValueError, match="interpret"):
        run(Guard(compile_first=False), needs_a_tpu, compiles=True)


def test_it_runs_within_shard_map():
    guard = Guard(shadow_calls=1)
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    call = Call(key=KEY, plans=[], ours=off("out", 0.5), theirs=engine, lengths=(2, 3, 4))
    spread = (PartitionSpec(None, "model"), *[PartitionSpec()] * 4)
    step = jax.jit(
        jax.shard_map(
            lambda *given: guard.run(call, given), mesh=mesh, in_specs=spread,
            out_specs=spread[:2], check_vma=False,
        )
    )  # fmt: skip
    out, _ = jax.block_until_ready(step(*arrays()))
    jax.effects_barrier()
    assert float(out[0, 0, 0]) == 2
    assert list(guard.refused) == [KEY]


@pytest.mark.parametrize(
    "wrong", [{"shadow_calls": -1}, {"shadow_calls": 1.5}, {"shadow_share": 2}, {"bound": 0}]
)
def test_numbers_that_are_none(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Guard(**wrong)
