"""Records what the launches of the public measured rows do, from the public kernels themselves.

Compiles each row's kernel for a chip that is not there, runs its scalar program on the row's batch,
and keeps bundles, copies and waits in `data/recordings.zip`; no code of a public kernel is kept.
The v3 kernel comes out of the tpu-inference 0.32.0 wheel, which pip gets. The other two are public
at commits only; give a folder with both repositories checked out there:

    SOURCES/sglang-jax      github.com/sgl-project/sglang-jax at 87cd71a8
    SOURCES/tpu-inference   github.com/vllm-project/tpu-inference at 6b1a9495

    python benchmarks/record_measured.py --sources SOURCES [--workers 2] [--row v3-0] [--again]

Rows that are recorded already are left alone but for `--again`. The measured kernels were compiled
by other versions of jax and libtpu than the ones recorded here, which the manifest names.
"""

import argparse
import functools
import importlib
import sys
import tempfile
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import measured
import numpy as np
import numpy.typing as npt

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.interop import records, wheel
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.recording import pack
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import record
from rpa_tune.provenance import provenance

TASK = "record_measured:record_row"
COMMITS = {"sglang-jax": "87cd71a8", "tpu-inference": "6b1a9495"}
SGLANG = "sgl_jax.srt.kernels.ragged_paged_attention.ragged_paged_attention"
STACKED_TABLE = "tpu_inference.kernels.experimental.stacked_rpa.tuned_block_sizes"
_DEADLINE_S = 3600.0  # compute blocks of 2048 tokens take a quarter of an hour to compile


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row, and where kernels are found.

    Attributes:
      row: What was measured.
      sources: Folder of the checkouts.
      wheels: Folder of unpacked wheels.
    """

    row: measured.Row
    sources: Path
    wheels: Path


def record_row(task: Task) -> tuple[bytes, str]:
    """In a worker: the packed recordings of a row's launch, or nothing and why."""
    make = {"v3": _v3, "sglang": _sglang, "stacked": _stacked}[task.row.name.partition("-")[0]]
    bundles, operands = make(task)
    if isinstance(bundles, str):
        return b"", bundles
    program = load_program(bundles)
    return pack(record(program, load_machine(task.row.chip), operands)), ""


def _v3(task: Task) -> tuple[Path | str, Operands]:
    """The kernel of the wheel."""
    from rpa_tune.compile import worker
    from rpa_tune.compile.dumps import unpack_bundles

    output = worker.worker_folder() / "schedule.txt.gz"
    root = wheel.fetch_wheel(task.wheels)
    asked = records.CompileTask(record=task.row.contents, root=root, output=output)
    if refusal := records.compile_record(asked):
        return refusal, {}
    return unpack_bundles(output, worker.worker_folder()), task.row.contents.operands()


def _sglang(task: Task) -> tuple[Path | str, Operands]:
    """One call, every sequence in the mixed range, inside the function that was timed."""
    import jax
    import jax.numpy as jnp

    from rpa_tune.compile.lower import Call, compile_call
    from rpa_tune.hw.chip import load_chip
    from rpa_tune.interop import tpu_inference

    line = task.row.contents
    module = load_sglang(task.sources / "sglang-jax" / "python")
    workload, page = line["workload"], line["page_size"]
    bq, bkv_p = line["block_sizes"]["bq_sz"], line["block_sizes"]["bkv_p"]
    tokens, seqs, dim = workload["max_num_tokens"], workload["num_seqs"], line["head_dim"]
    kv_heads, new = line["num_kv_heads"], (tokens, line["num_kv_heads"], dim)
    num_pages = -(-workload["kv_cache_tokens"] // page)
    shapes = (
        ((tokens, line["num_q_heads"], dim), jnp.bfloat16),
        (new, jnp.bfloat16),
        (new, jnp.bfloat16),
        ((num_pages, page, 2 * kv_heads, dim), jnp.bfloat16),
        ((seqs,), jnp.int32),
        ((seqs * workload["pages_per_seq"],), jnp.int32),
        ((seqs + 1,), jnp.int32),
        ((seqs + 1,), jnp.int32),
        ((3,), jnp.int32),
    )
    call = Call(
        function=functools.partial(
            module.ragged_paged_attention, custom_mask=None, causal=1, sm_scale=dim**-0.5,
            num_kv_pages_per_block=bkv_p, num_queries_per_block=bq,
        ),
        arguments=tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes),
        kernel_name=module.get_kernel_scope_name(bq, bkv_p, page),
    )  # fmt: skip
    with tpu_inference.pretend(load_chip(task.row.chip), module):
        compiled = compile_call(call, task.row.chip)
    if compiled.bundles is None:
        return f"{compiled.status}: {compiled.detail}", {}
    return compiled.bundles, sglang_operands(workload)


def load_sglang(root: Path) -> Any:
    """The kernel module of sglang-jax, under empty parent packages."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    parts = SGLANG.split(".")
    for depth in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(root.joinpath(*parts[:depth]))]
        sys.modules.setdefault(package.__name__, package)
    helpers = {"common_utils": "next_power_of_2", "jax_utils": "get_device_name"}
    sys.modules.setdefault("sgl_jax.srt.utils", types.ModuleType("sgl_jax.srt.utils"))
    for name, function in helpers.items():
        # They look up block sizes, which are given.
        module = types.ModuleType(f"sgl_jax.srt.utils.{name}")
        setattr(module, function, None)
        sys.modules.setdefault(module.__name__, module)
    # The name up to jax 0.9.
    with mock.patch.object(pltpu, "ANY", pl.ANY, create=True):
        module = importlib.import_module(SGLANG)
    if not hasattr(pltpu, "ANY"):
        module.pltpu = types.SimpleNamespace(**vars(pltpu), ANY=pl.ANY)  # type: ignore[attr-defined]
    return module


def sglang_operands(workload: dict[str, Any]) -> Operands:
    """The scalars of the call; the number of sequences is the grid's bound, in front of them."""
    import jax

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


def _stacked(task: Task) -> tuple[Path | str, Operands]:
    """Its decode call with the block sizes that it chooses on a v7x."""
    from rpa_tune.compile.lower import Call, compile_call
    from rpa_tune.hw.chip import load_chip
    from rpa_tune.interop import tpu_inference

    line, root = task.row.contents, task.sources / "tpu-inference"
    context, seqs = line["workload"]["kv_len"], line["workload"]["num_seqs"]
    pages_per_seq = -(-context // line["page_size"])
    problem = Problem(
        num_q_heads=line["num_q_heads"],
        num_kv_heads=line["num_kv_heads"],
        head_dim=line["head_dim"],
        page_size=line["page_size"],
        max_num_tokens=seqs,
        max_num_seqs=seqs,
        pages_per_seq=pages_per_seq,
        num_pages=min(1 << 14, pages_per_seq * seqs),
        q_dtype=line["q_dtype"],
        kv_dtype=line["kv_dtype"],
        sm_scale=line["head_dim"] ** -0.5,
        k_scale=line["k_scale"],
        v_scale=line["v_scale"],
    )
    table: Any = wheel.load_module(root, STACKED_TABLE)
    with mock.patch.object(table, "get_device_name", return_value="TPU7x"):
        bound = tpu_inference.bind(
            "stacked", root, chip=load_chip(task.row.chip), problem=problem, blocks=None
        )
        batch = Batch(q_lens=(1,) * seqs, kv_lens=(context,) * seqs, num_decode=seqs)
        (launch,) = bound.pallas_calls(batch)
        call = Call(
            function=bound.function,
            arguments=bound.arguments,
            kernel_name=launch.name,
            donated=(3,),
        )
        with bound.pretend():
            compiled = compile_call(call, task.row.chip)
    if compiled.bundles is None:
        return f"{compiled.status}: {compiled.detail}", {}
    return compiled.bundles, launch.operands


def main() -> None:
    """Records what is missing; ends with 1 when a row could not be recorded."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--row", action="append", help="only this row; repeat")
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--wheels", type=Path, default=default_cache_dir() / "fidelity")
    args = parser.parse_args()
    contents: dict[str, bytes] = {}
    versions: dict[str, str] = {}
    if measured.RECORDINGS.exists():
        _, manifest = measured.load_observations(measured.load_rows())
        versions = dict(manifest["versions"])
        with zipfile.ZipFile(measured.RECORDINGS) as archive:
            contents = {name: archive.read(name) for name in manifest["sha256"]}
    wanted = [
        row
        for row in measured.load_rows()
        if row.name in (args.row or [row.name]) and (args.again or row.name not in contents)
    ]
    source = provenance()
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        tasks = [Task(row=row, sources=args.sources, wheels=args.wheels) for row in wanted]
        with WorkerPool(num_workers=args.workers, scratch_dir=Path(scratch)) as pool:
            for reply in pool.map_unordered(TASK, tasks, deadline_s=_DEADLINE_S):
                name = wanted[reply.index].name
                packed, reason = reply.value or (b"", reply.failure and reply.failure.detail)
                if not packed:
                    failed.append(f"{name}: {reason}")
                    continue
                contents[name] = packed
                versions[name] = f"jax {source['jax']}, libtpu {source['libtpu']}"
                measured.keep_recordings(contents, versions)
                print(f"{name}: {len(packed):,} bytes", file=sys.stderr)
    if failed:
        sys.exit("not recorded:\n" + "\n".join(failed))


if __name__ == "__main__":
    # Workers import what they are sent by the name of its module, which `__main__` is not.
    importlib.import_module("record_measured").main()
