"""The calls that sglang-jax timed: its ragged paged attention of 87cd71a8, with blocks as asked.

Its kernel is in no package: `--sources` of `record_measured.py` names a folder with a checkout of
github.com/sgl-project/sglang-jax at that commit.
"""

import functools
import importlib
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_tune.compile.lower import compile_call
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.functions import pretend
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.recording import Launch
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import record

COMMIT = "87cd71a8"
_KERNEL = "sgl_jax.srt.kernels.ragged_paged_attention.ragged_paged_attention"
# They look up block sizes, which are given here.
_LOOK_UPS = {"common_utils": "next_power_of_2", "jax_utils": "get_device_name"}


def record_line(line: dict[str, Any], sources: Path) -> list[Launch]:
    """In a worker: one call, every sequence in the mixed range, inside the function that was timed.

    Raises:
      UsageError: The compiler refuses, or there is no checkout.
    """
    module = _load_kernel(sources / "sglang-jax" / "python")
    workload, page, dim = line["workload"], line["page_size"], line["head_dim"]
    bq, bkv_p = line["block_sizes"]["bq_sz"], line["block_sizes"]["bkv_p"]
    tokens, seqs, kv_heads = workload["max_num_tokens"], workload["num_seqs"], line["num_kv_heads"]
    num_pages = -(-workload["kv_cache_tokens"] // page)
    bfloat16 = [
        (tokens, line["num_q_heads"], dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim),
        (num_pages, page, 2 * kv_heads, dim),
    ]  # fmt: skip
    int32 = [(seqs,), (seqs * workload["pages_per_seq"],), (seqs + 1,), (seqs + 1,), (3,)]
    call = Call(
        function=functools.partial(
            module.ragged_paged_attention, custom_mask=None, causal=1, sm_scale=dim**-0.5,
            num_kv_pages_per_block=bkv_p, num_queries_per_block=bq,
        ),
        arguments=(
            *(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in bfloat16),
            *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in int32),
        ),
        kernel_name=module.get_kernel_scope_name(bq, bkv_p, page),
    )  # fmt: skip
    chip = load_chip(line["chip"])
    with pretend(chip, module):
        compiled = compile_call(call, chip)
    if compiled.bundles is None:
        raise UsageError(f"{compiled.status}: {compiled.detail}")
    program = load_program(compiled.bundles)
    return [record(program, load_machine(line["chip"]), _operands(workload))]


def _load_kernel(root: Path) -> Any:
    """The kernel's module, under empty parent packages."""
    if not root.is_dir():
        raise UsageError(
            f"no checkout of sglang-jax at {root.parent}",
            hint=f"check out github.com/sgl-project/sglang-jax at {COMMIT} there",
        )
    parts = _KERNEL.split(".")
    for depth in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(root.joinpath(*parts[:depth]))]
        sys.modules.setdefault(package.__name__, package)
    sys.modules.setdefault("sgl_jax.srt.utils", types.ModuleType("sgl_jax.srt.utils"))
    for name, function in _LOOK_UPS.items():
        module = types.ModuleType(f"sgl_jax.srt.utils.{name}")
        setattr(module, function, None)
        sys.modules.setdefault(module.__name__, module)
    # The name up to jax 0.9.
    with mock.patch.object(pltpu, "ANY", pl.ANY, create=True):
        kernel: Any = importlib.import_module(_KERNEL)
    if not hasattr(pltpu, "ANY"):
        kernel.pltpu = types.SimpleNamespace(**vars(pltpu), ANY=pl.ANY)
    return kernel


def _operands(workload: dict[str, Any]) -> Operands:
    """The scalars of the call; the number of sequences is the grid's bound, in front of them.

    Raises:
      ValueError: This jax draws other contexts than those that were timed.
    """
    seqs = workload["num_seqs"]
    if workload["kind"] == "prefill":
        q_lens = kv_lens = np.array(workload["q_lens"], np.int32)
    else:
        q_lens = np.ones(seqs, np.int32)
        drawn = jax.random.randint(jax.random.PRNGKey(42), (seqs,), 1024, 2048) + 1
        kv_lens = np.asarray(drawn).astype(np.int32)
        if kv_lens.sum() != workload["kv_lens_sum"]:
            raise ValueError(f"this jax draws {kv_lens.sum()} tokens of {workload['kv_lens_sum']}")

    def starts(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

    scalars = (
        np.array([seqs], np.int32),
        kv_lens,
        np.zeros(seqs * workload["pages_per_seq"], np.int32),  # page numbers cost nothing
        starts(q_lens),
        starts(kv_lens),
        starts(q_lens * kv_lens),
        np.array(workload["distribution"], np.int32),
        np.zeros(3, np.int32),
        np.full(4, -1, np.int32),
        np.full(6, -1, np.int32),
    )
    return dict(enumerate(scalars))
