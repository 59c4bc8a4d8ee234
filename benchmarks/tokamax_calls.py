"""The calls that tokamax timed: the function, its abstract arrays, and what its kernels read.

tokamax times a call by all XLA operations in it, so everything that its program runs is recorded:
the kernels, and the computations and copies that XLA puts around them (`hlo_steps.py`). Needs
tokamax's wheel, and a jax that its kernels trace under: 0.11.1 or newer, so Python 3.12.
"""

import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.extend  # the kernel uses it, and does not import it
import jax.numpy as jnp
import numpy as np
from hlo_steps import copies_launch, read_steps
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.compile import target, worker
from rpa_tune.errors import DumpError, UsageError
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.launches import Recorder
from rpa_tune.interop.public.operands import Operands, PallasCall
from rpa_tune.interop.public.tokamax import calls
from rpa_tune.interop.public.tokamax.package import WHEEL
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.recording import Launch
from rpa_tune.llo.simulate import record

_OPS = "tokamax._src.ops"
_SPLASH = f"{_OPS}.experimental.tpu.splash_attention"
_METADATA = "rpa_metadata_schedule"  # name= of the launches that make schedules
_NO_COMPUTATION = ("<", "TLP")  # the program around the computations: it only calls them


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """A call that was timed.

    Attributes:
      function: Takes `arguments`.
      arguments: Abstract arrays.
      calls: Its Pallas calls, in order, and their scalars.
    """

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    calls: tuple[PallasCall, ...]


def record_line(line: dict[str, Any], cache: Path) -> list[Launch]:
    """In a worker: compiles the program of a row, and records all that it runs.

    Raises:
      UsageError: The compiler refuses, or something in the program cannot be simulated.
    """
    WHEEL.use(cache)
    chip = load_chip(line["chip"])
    with calls.pretend(chip):
        timed = (_batched if line["kernel"] == "batched_rpa" else _dense)(line, WHEEL.root)
        folder, text = _compile(timed, chip)
    worker.report_phase("record")
    return _launches(folder, text, timed.calls, line["chip"])


def _compile(timed: Timed, chip: Chip) -> tuple[Path, str]:
    """The folder of the program's schedules, and the program as XLA made it.

    Raises:
      UsageError: The compiler refuses.
    """
    folder = target.dump_folder(worker.worker_folder())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sharding = jax.sharding.SingleDeviceSharding(target.device_free_device(chip))
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in timed.arguments]
    worker.report_phase("lower")
    lowered = jax.jit(timed.function).lower(*arguments)
    worker.report_phase("compile")
    try:
        return folder, lowered.compile().as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(f"the compiler refuses: {str(error).splitlines()[0]}") from error


def _launches(folder: Path, text: str, launched: tuple[PallasCall, ...], chip: str) -> list[Launch]:
    """Everything that a compiled program runs, as often as it runs it.

    Raises:
      UsageError: Something of it cannot be simulated.
    """
    waiting = {n: [c.operands for c in launched if c.name == n] for n in _names(launched)}
    machine = load_machine(chip)
    recorded: dict[str, Launch] = {}
    paths = {_computation(path): path for path in folder.glob("*-final_bundles.txt")}
    paths = {name: path for name, path in paths.items() if not name.startswith(_NO_COMPUTATION)}
    steps = read_steps(text, paths)
    # Of calls by one name the compiler gives the first the highest number.
    for name, path in sorted(paths.items(), key=lambda item: _order(item[0])):
        kernel = name.rpartition(".")[0] if name.rpartition(".")[2].isdigit() else name
        operands = waiting[kernel].pop(0) if waiting.get(kernel) else {}
        try:
            one = record(_as_run(load_program(path), chip), machine, operands)
        except DumpError as error:
            raise UsageError(f"{name}: {error}") from error
        recorded[name] = one._replace(is_kernel=kernel in waiting)
    if missing := [name for name, left in waiting.items() if left]:
        raise UsageError(f"kernels without a schedule of their own: {missing}")
    found = [recorded[step.schedule] for step in steps if step.schedule]
    if copies := [step for step in steps if not step.schedule]:
        found.append(copies_launch(copies, int(machine.value("granule_bytes"))))
    return found


def _names(calls: tuple[PallasCall, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(call.name for call in calls))


def _computation(path: Path) -> str:
    """`<time>-<computation>-<NN>-final_bundles.txt`."""
    return path.name.split("-", 1)[1].rsplit("-", 2)[0]


def _order(name: str) -> tuple[str, int]:
    base, _, number = name.rpartition(".")
    return (base, -int(number)) if number.isdigit() else (name, 0)


def _as_run(program: Program, chip: str) -> Program:
    """A computation of XLA as it runs within a program.

    One that asks which core it is runs on both: they have met before. Checks of bounds are left
    out: operands' addresses are made up, with room for 32 MiB each.
    """
    return replace(
        program,
        num_cores=1 if program.core_id is None else load_chip(chip).num_cores_per_device,
        bundles=tuple(
            bundle._replace(
                instructions=tuple(
                    item
                    for item in bundle.instructions
                    if item.op is not Op.HALT or not item.detail.startswith("BoundsCheck")
                )
            )
            for bundle in program.bundles
        ),
    )


class _Recorder(Recorder):
    """Records launches that make schedules, too."""

    metadata: list[PallasCall]

    def _make_metadata(
        self, launch: Callable[..., Any], arrays: tuple[Any, ...], mesh: AbstractMesh
    ) -> Any:
        operands = {i: np.asarray(array) for i, array in enumerate(arrays)}
        self.metadata.append(PallasCall(name=_METADATA, operands=operands))
        return super()._make_metadata(launch, arrays, mesh)


def _batched(line: dict[str, Any], root: Path) -> Timed:
    """Ragged paged attention. Contexts are not recorded: every one fills its pages."""
    del root
    tokens, num_q_heads, head_dim = line["queries"]
    num_seqs, pages_per_seq = line["num_seqs"], line["num_page_indices"] // line["num_seqs"]
    num_pages, page_size = line["kv_cache"][:2]
    problem = Problem(
        num_q_heads=num_q_heads,
        num_kv_heads=line["num_kv_heads"],
        head_dim=head_dim,
        page_size=page_size,
        max_num_tokens=tokens,
        max_num_seqs=num_seqs,
        pages_per_seq=pages_per_seq,
        num_pages=num_pages,
        q_dtype="bfloat16",
        kv_dtype="bfloat16",
        sm_scale=1.0,
    )
    q_lens = q_lens_of(tokens, num_seqs)
    num_decode = sum(q == 1 for q in q_lens)
    batch = Batch(
        q_lens=tuple(q_lens),
        kv_lens=(pages_per_seq * page_size,) * num_seqs,
        num_decode=num_decode,
    )
    tuned = line["blocks"]
    shared = {"bkv_sz": tuned["bkv_sz"], "n_buffer": tuned["num_buffers"]}
    decode = BatchedConfig(bq_sz=1, bq_c_sz=1, batch_size=tuned["decode_batch_size"], **shared)
    prefill = BatchedConfig(
        bq_sz=tuned["prefill_bq_sz"],
        bq_c_sz=tuned["prefill_bq_c_sz"],
        batch_size=tuned["prefill_batch_size"],
        **shared,
    )
    # A case without sequences gets small blocks, which are compiled sooner.
    blocks = calls.blocks_of("decode", problem, decode)
    if not num_decode:
        blocks = calls.blocks_of("mixed", problem, prefill)
    elif num_decode < num_seqs:
        blocks["prefill"] = prefill
    bound = calls.bind(problem, blocks, load_chip(line["chip"]))
    recorder = _Recorder(bound.function, bound.arguments, bound.context)
    recorder.metadata = []
    launched = recorder.calls(problem, batch)
    return Timed(
        function=bound.function,
        arguments=bound.arguments,
        calls=(*recorder.metadata, *launched),
    )


def q_lens_of(tokens: int, num_seqs: int) -> list[int]:
    """Query lengths that a row's shapes leave: all alike, or one chunk among decode sequences."""
    if tokens % num_seqs == 0:
        return [tokens // num_seqs] * num_seqs
    return [1] * (num_seqs - 1) + [tokens - num_seqs + 1]


def _dense(line: dict[str, Any], root: Path) -> Timed:
    """Dense attention, forward: the splash kernel, for one sequence or a batch of them."""
    splash, masks = _load_splash(root)
    q_shape, k_shape, v_shape = line["q"], line["k"], line["v"]
    is_batched = line["kernel"] == "dense"
    length = (q_shape[1], k_shape[1])
    causal = masks.CausalMask(shape=length, shard_count=1)
    mask = causal if line["is_causal"] else masks.FullMask(length)
    blocks = dict(line["blocks"])
    for name in ("q_layout", "k_layout", "v_layout"):
        blocks[name] = splash.QKVLayout(blocks[name])
    default = splash.SplashConfig.get_default()
    if not is_batched:
        default = replace(default, block_q_dkv=None, block_kv_dkv=None, block_kv_dkv_compute=None)
    kernel = splash.make_splash_mha(
        mask,
        config=replace(default, **blocks),
        save_residuals=line["has_residuals"],
        mask_value=float(jnp.finfo(jnp.float32).min) if is_batched else line["mask_value"],
        downcast_smem_data=not is_batched,
        q_seq_shards=1,
    )

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        if not is_batched:
            return kernel(q, k, v)
        # The kernel takes heads before tokens; callers have them the other way.
        q = q * line["logits_scale"]
        found = jax.vmap(kernel)(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)))
        out, stats = found if line["has_residuals"] else (found, None)
        return jnp.swapaxes(out, 1, 2), stats

    arguments = tuple(
        jax.ShapeDtypeStruct(tuple(shape), jnp.bfloat16) for shape in (q_shape, k_shape, v_shape)
    )
    single = [
        jax.ShapeDtypeStruct(
            (a.shape[2], a.shape[1], a.shape[3]) if is_batched else a.shape, a.dtype
        )
        for a in arguments
    ]
    return Timed(function=attend, arguments=arguments, calls=_calls_of(splash, kernel, single))


def _calls_of(splash: Any, kernel: Any, arguments: list[Any]) -> tuple[PallasCall, ...]:
    """The launch of one sequence; a batch of them has the same scalars."""
    info = kernel.fwd_mask_info
    found: list[PallasCall] = []

    def stand_in(_: Any, *args: Any, **options: Any) -> Callable[..., Any]:
        del args

        def run(*arrays: Any) -> Any:
            grid = options["grid_spec"].grid
            scalars = [jnp.asarray(n)[None] for n in grid if not isinstance(n, int)]
            scalars += [array for array in arrays[:7] if array is not None]
            operands: Operands = {i: np.asarray(a, np.int32) for i, a in enumerate(scalars)}
            found.append(PallasCall(name=options["name"], operands=operands))
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), options["out_shape"])

        return run

    def launch(*arrays: Any) -> Any:
        names = ("mask_value", "is_mqa", "config", "save_residuals", "mask_function",
                 "fwd_mask_sparsity")  # fmt: skip
        options = {name: kernel.kwargs[name] for name in names}
        with mock.patch.object(pl, "pallas_call", stand_in), jax.ensure_compile_time_eval():
            return splash._splash_attention_forward(info, *arrays, None, None, **options)

    jax.eval_shape(launch, *arguments)
    return tuple(found)


def _load_splash(root: Path) -> tuple[Any, Any]:
    """(kernel's module, masks' module); the records that the kernel shares with its operator."""
    masks = WHEEL.load(root, f"{_SPLASH}.splash_attention_mask")
    name = f"{_SPLASH}.base"
    if name not in sys.modules:
        # The real one needs all of tokamax; the kernel wants the names that it passes on.
        module = types.ModuleType(name)
        module.__dict__.update(vars(WHEEL.load(root, f"{_SPLASH}.reference")))
        module.__dict__["__name__"] = name
        sys.modules[name] = module
        sys.modules[_SPLASH].__dict__["base"] = module
    return WHEEL.load(root, f"{_SPLASH}.splash_attention_kernel"), masks
