"""The dispatcher's call on a mesh of CPU devices, for test_mesh.py; run in a process of its own."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from interpret.test_compiled import CHIP, executable
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from table_rows import make_row

from rpa_kernels.batch import Batch
from rpa_kernels.family import config_to_dict
from rpa_kernels.problem import Problem
from rpa_tune.artifact.build import Built, write_built
from rpa_tune.dispatch import runtime
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.step import Step

TP = 2
WHOLE = Problem(
    num_q_heads=4, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=16,
    max_num_seqs=4, pages_per_seq=4, num_pages=24, sm_scale=0.1,
)  # fmt: skip
SHARE = replace(WHOLE, num_q_heads=4 // TP, num_kv_heads=2 // TP)
BATCH = Batch(q_lens=(1, 1, 9), kv_lens=(1, 16, 40), num_decode=2, page_seed=3)
HEADS, CACHE = P(None, "tp", None), P(None, None, "tp", None, None)
SPECS = (HEADS, HEADS, HEADS, CACHE, P(), P(), P(), P())
# Small blocks, so that the interpreter copies little.
SMALL = {
    "decode": {"bkv_sz": 128, "bkv_csz": 128, "seqs_per_step": 1, "num_buffers": 2, "bq_sz": 8},
    "mixed": {"bq_sz": 16, "bq_csz": 16, "bkv_sz": 128, "bkv_csz": 128, "num_buffers": 2,
              "mxu_sums": 0},
}  # fmt: skip
INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan", dma_execution_mode="on_wait")


def make_arrays():
    rng = np.random.default_rng(0)
    shapes = [(16, 4, 128), (16, 2, 128), (16, 2, 128), WHOLE.kv_cache_shape]
    b = BATCH.arrays(WHOLE)
    rest = (b.kv_lens, b.page_indices, b.cu_q_lens, b.distribution)
    return [*(jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in shapes),
            *map(jnp.asarray, rest)]  # fmt: skip


def sharded():
    """One jitted step on the mesh: each device attends with its heads, and donates its cache."""
    rows = [make_row(f, p, configs=[SMALL[f]]) for f in SMALL for p in (SHARE, WHOLE)]
    dispatcher, other_host = (Dispatcher(CHIP, Tables(order)) for order in (rows, rows[::-1]))
    mesh = Mesh(np.array(jax.devices()[:TP]), ("tp",))
    plans = [host.plan(SHARE, Step.of_batch(BATCH)) for host in (dispatcher, other_host)]

    def share(*arrays):
        return dispatcher(*arrays, plan=plans[0], sm_scale=0.1, interpret=INTERPRET)

    step = jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=SPECS, out_specs=(HEADS, CACHE), check_vma=False),
        donate_argnums=(3,),
    )
    arrays = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(make_arrays(), SPECS, strict=True)
    ]
    out, cache = step(*arrays)
    plan = dispatcher.plan(WHOLE, Step.of_batch(BATCH))
    expected, expected_cache = dispatcher(*make_arrays(), plan=plan, sm_scale=0.1,
                                          interpret=INTERPRET)  # fmt: skip
    used = slice(0, BATCH.num_tokens)
    return {
        "configs": {one.family: config_to_dict(one.config) for one in plans[0].launches},
        "plans_are_equal": len(set(plans)) == 1,
        "num_devices": len(out.sharding.device_set),
        "output_is_equal": bool((np.asarray(out)[used] == np.asarray(expected)[used]).all()),
        "cache_is_equal": bool((np.asarray(cache) == np.asarray(expected_cache)).all()),
        "largest": float(jnp.abs(expected[used]).max()),
        "donated": [array.is_deleted() for array in arrays[:4]],
    }


def artifact(folder):
    """An artefact's executable on each device of a host, and on arrays that are on two."""
    from interpret.test_compiled import PLAN, make_arrays, stand_in

    path = Path(folder) / "kernels.zip"
    write_built(path, CHIP, [Built(plan=PLAN, content=executable())])
    dispatcher = load_dispatcher("v6e", Tables(), "heuristic", path)
    said = []
    logging.getLogger("rpa_tune.dispatch").addFilter(lambda r: said.append(r.getMessage()))
    expected = np.asarray(stand_in(*make_arrays())[0])
    places, right = [], []
    for device in jax.devices()[:3]:
        arrays = [jax.device_put(array, device) for array in make_arrays()[:4]]
        out, _ = dispatcher(*arrays, *make_arrays()[4:], plan=PLAN, sm_scale=0.5)
        places.append(next(iter(out.devices())).id)
        right.append(bool((np.asarray(out) == expected).all()))
    compiled = []
    runtime._run_in_place = lambda *arrays, **_: compiled.append(1) or (arrays[0], arrays[3])
    mesh = Mesh(np.array(jax.devices()[:2]), ("tp",))
    spread = [jax.device_put(x, NamedSharding(mesh, P())) for x in make_arrays()[:4]]
    for _ in range(2):
        dispatcher(*spread, *make_arrays()[4:], plan=PLAN, sm_scale=0.5)
    return {"devices": places, "right": right, "compiled": len(compiled), "said": said}


if __name__ == "__main__":
    print(json.dumps({"sharded": sharded, "artifact": artifact}[sys.argv[1]](*sys.argv[2:])))
