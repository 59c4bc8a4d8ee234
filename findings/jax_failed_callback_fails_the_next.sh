#!/usr/bin/env bash
# One ordered callback that raises makes every later one of the thread raise the same error.
#
# Who is hurt: whoever runs many Pallas kernels under the TPU interpreter in one process. Its memory
# accesses are ordered callbacks, and it raises for an index out of bounds. After one such kernel
# all others "fail" with its message: a test suite blames right kernels, and a check that wrong ones
# are found passes without looking at them. It happens where the failing call had to wait for
# its operands, as every call behind another computation does; a call that runs at once is no trouble.
# The error stays in the token that orders callbacks. `jax.effects_barrier()` raises it too and
# does not remove it.
#
# Seen with jax 0.10.2 and 0.11.2 (for good); in 0.12.0.1 one right call still raises.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import jax, jax.numpy as jnp, jaxlib, numpy as np
from jax.experimental import io_callback

print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {jax.devices()[0].platform}")


def answer(x):
    if x > 0:
        raise ValueError("the first call failed")
    return np.float32(1)


def outcome(function):
    try:
        function()
        return "right"
    except jax.errors.JaxRuntimeError as error:
        return str(error).strip().splitlines()[-1]


call = jax.jit(lambda x: io_callback(answer, jax.ShapeDtypeStruct((), jnp.float32), x, ordered=True))
slow = jax.jit(
    lambda x: jax.lax.fori_loop(0, 200, lambda _, m: m @ m / jnp.max(m @ m), jnp.full((300, 300), x))[0, 0]
)
right = lambda: call(jnp.float32(-1)).block_until_ready()
print("a right call before:", outcome(right))
print("a call that raises: ", outcome(lambda: call(slow(jnp.float32(1))).block_until_ready()))
after = [outcome(right) for _ in range(3)]
print("right calls after:  ", "; ".join(after))
barrier = outcome(jax.effects_barrier)
print("effects_barrier:    ", barrier)
last = outcome(right)
print("a right call behind:", last)
assert all("the first call failed" in one for one in (*after, barrier, last)), "mended"
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
echo "as recorded"
# Output seen:
#   jax 0.10.2, jaxlib 0.10.2, cpu
#   a right call before: right
#   a call that raises:  ValueError: the first call failed
#   right calls after:   ValueError: the first call failed; ValueError: the first call failed; ValueError: the first call failed
#   effects_barrier:     ValueError: the first call failed
#   a right call behind: ValueError: the first call failed
