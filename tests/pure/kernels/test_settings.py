"""What a launch is traced under; tests/interpret and tests/aot hold whole programs to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpa_kernels.settings import default_settings, under_defaults


def trace():
    """What a traced Python number, a promotion and a jit come to under the settings in force."""
    is_traced = []

    @jax.jit
    def program(x):
        is_traced.append(isinstance(x, jax.core.Tracer))
        return x + np.float32(1)

    # A vector and a matrix, bfloat16 and float32: each is an error under a strict setting.
    summed = program(jnp.ones(3, jnp.bfloat16) + jnp.ones((2, 3), jnp.float32))
    return jnp.arange(3).dtype, summed.dtype, is_traced


def test_a_callers_settings_are_out_of_sight_within_and_back_after():
    right = trace()
    assert right == (jnp.int32, jnp.float32, [True])
    with (
        jax.enable_x64(True),
        jax.disable_jit(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        assert under_defaults(trace)() == right
        with default_settings():
            assert trace() == right
        assert jnp.arange(3).dtype == jnp.int64
        assert jax.config.jax_disable_jit
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.ones(3) + jnp.ones((2, 3))
        with pytest.raises(ValueError, match="dtype promotion"):
            jnp.ones(3, jnp.bfloat16) + jnp.ones(3, jnp.float32)


def test_settings_come_back_after_an_error_and_the_function_keeps_its_name():
    @under_defaults
    def launch(a, *, b):
        """Launches."""
        raise RuntimeError(f"{a} {b} {jax.config.jax_enable_x64}")

    assert (launch.__name__, launch.__doc__) == ("launch", "Launches.")
    with jax.enable_x64(True):
        with pytest.raises(RuntimeError, match="1 2 False"):
            launch(1, b=2)
        assert jax.config.jax_enable_x64
