#!/usr/bin/env bash
# A bitcast view of a ref (`ref.bitcast(dtype)`) is traced anew at nearly each use: to learn its shape,
# which follows from shape and dtypes alone, jax traces `bitcast` with `eval_shape`, and keeps no answer.
#
# Who is hurt: whoever traces Pallas kernels that read packed values (bfloat16, float8, int4) as 32-bit
# words, or words as packed values, in unrolled loops. A view that is made where it is used costs two
# traces a load: more than half of the time to trace the kernel below. One view that is kept
# and read in slices at constant places costs one a load: each slice is a new question to jax.
# `pltpu.bitcast` of loaded values costs none.
#
# The counts are exact; the seconds are of one run, and differ.
# Source: BitcastTransform.transform_type in jax/_src/state/types.py, eval_bitcast_shape in
# jax/_src/state/utils.py; the same in both versions.
#
# Needs Python 3.12 or later, as jax 0.12.0.1 does: PYTHON=python3.12 bash ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import functools, time

import jax, jax.numpy as jnp, jaxlib
from jax._src.state import utils
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

traces = 0
bitcast, ask = utils.bitcast, utils.eval_bitcast_shape


def counted(x, dtype):
    global traces
    traces += 1
    return bitcast(x, dtype)


LOADS = {
    "loaded words, bitcast": lambda x, view, i: pltpu.bitcast(x[pl.ds(8 * i, 8), :], jnp.bfloat16),
    "a view at each load": lambda x, view, i: x.bitcast(jnp.bfloat16)[pl.ds(16 * i, 16), :],
    "one view, in slices": lambda x, view, i: view[pl.ds(16 * i, 16), :],
}


def trace(how, loads):
    """Traces of `bitcast`, and seconds of the processor, that it takes to trace a kernel."""
    width = 128 * (1 + list(LOADS).index(how))  # shapes that no other kernel had: nothing is cached

    def kernel(x, out):
        view = x.bitcast(jnp.bfloat16)
        for i in range(loads):
            out[pl.ds(16 * i, 16), :] = LOADS[how](x, view, i)

    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((16 * loads, width), jnp.bfloat16))
    before, started = traces, time.process_time()
    jax.jit(call).trace(jax.ShapeDtypeStruct((8 * loads, width), jnp.uint32))
    return traces - before, time.process_time() - started


utils.bitcast = counted
print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}")
for how in LOADS:
    trace(how, 2)  # what only the first kernel of a process pays for
    few, many = trace(how, 10), trace(how, 100)
    # The same, if jax remembered the answer.
    known = functools.cache(lambda shape, dtype, to: ask(jax.ShapeDtypeStruct(shape, dtype), to))
    utils.eval_bitcast_shape = lambda x, to: known(x.shape, x.dtype, to)
    kept = trace(how, 101)
    utils.eval_bitcast_shape = ask
    print(
        f"{how:22} {few[0]:3} traces for 10 loads, {many[0]:3} for 100 ({many[1]:.2f} s); "
        f"remembered {kept[0]} ({kept[1]:.2f} s)"
    )
    if how == "loaded words, bitcast":
        assert (few[0], many[0]) == (0, 0)
    else:
        assert few[0] >= 10 and many[0] >= 100, "answers are kept now"
        assert kept[0] == 1
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv "$folder/$version"
  "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version"
  JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/show.py"
done
echo "as recorded"
# Output seen (Python 3.12):
#   jax 0.10.2, jaxlib 0.10.2
#   loaded words, bitcast    0 traces for 10 loads,   0 for 100 (0.09 s); remembered 0 (0.09 s)
#   a view at each load     20 traces for 10 loads, 200 for 100 (0.35 s); remembered 1 (0.08 s)
#   one view, in slices     11 traces for 10 loads, 101 for 100 (0.20 s); remembered 1 (0.15 s)
#   jax 0.12.0.1, jaxlib 0.12.0.1
#   loaded words, bitcast    0 traces for 10 loads,   0 for 100 (0.10 s); remembered 0 (0.06 s)
#   a view at each load     20 traces for 10 loads, 200 for 100 (0.23 s); remembered 1 (0.04 s)
#   one view, in slices     11 traces for 10 loads, 101 for 100 (0.19 s); remembered 1 (0.04 s)
