"""The public kernels of tpu-inference as families: axes and names. No jax, no wheel.

One family is one Pallas call of a public function: `public-v3-decode` is the call that serves the
decode sequences. `public-mla-decode` is two: batches of sequences, and those that fill none. What
needs the wheel (compiling, the scalars of a launch, the function's own choice of blocks) is in
`calls.py` and `own_choice.py`, loaded when asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rpa_kernels import kv_blocks
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.batched import BatchedConfig, decode_axes, mixed_axes, scratch_bytes
from rpa_tune.interop.public.family import PublicFamily, floors, refusal
from rpa_tune.interop.public.tokamax import table
from rpa_tune.interop.public.tpu_inference import mla
from rpa_tune.interop.public.tpu_inference.configs import (
    Hd64Config,
    V3Config,
    check_batched,
    check_call,
    check_hd64,
    check_v3,
    v3_scratch_bytes,
)
from rpa_tune.interop.public.tpu_inference.package import PACKAGE, why_untraceable

if TYPE_CHECKING:
    from rpa_tune.interop.public.tpu_inference.calls import Tuned

_STACKED_BUFFERS = 2  # Source: NUM_BUFFERS in stacked_rpa/{decode,prefill}/block_sizes.py
_SLOTS = {"decode": ("decode",), "mixed": ("prefill", "mixed")}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class TpuInferenceFamily(PublicFamily):
    """A Pallas call of tpu-inference.

    Attributes:
      kernel: `v3`, `hd64`, `batched`, `stacked` or `mla`.
      case: `decode`, `mixed`, or empty for a kernel that serves all sequences in one call.
    """

    kernel: str
    case: str

    def shipped_configs(self) -> Iterable[tuple[str, Problem, Any]]:
        """Those of tokamax's tables for the batched kernel, which tokamax's came from."""
        return table.shipped_configs(self.case) if self.kernel == "batched" else ()

    @property
    def unavailable(self) -> str:
        """Why it cannot be compiled with what is installed; empty if it can."""
        return self.package.unavailable or why_untraceable(self.kernel)

    def call(self, problem: Problem, config: Any, chip: Chip) -> Call:
        """The whole public function, to be compiled for the sake of this call in it."""
        from rpa_tune.interop.public.tpu_inference import calls  # here, because it loads jax

        return calls.call(self._tuned(problem, config, chip))

    def scalar_operands(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch
    ) -> Mapping[int, Any]:
        """What the function's own code hands to the call."""
        return self.launches(problem, config, chip, batch)[0]

    def launches(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch
    ) -> tuple[Mapping[int, Any], ...]:
        """The same for each of `kernel_names`."""
        from rpa_tune.interop.public.tpu_inference import calls

        return calls.launches(self._tuned(problem, config, chip), batch)

    def kernel_names(self, problem: Problem, config: Any) -> tuple[str, ...]:
        """Those of the latent kernel's cases, or the one call of the others."""
        if self.kernel == "mla":
            return mla.call_names(problem, config)
        return (self.kernel_name(problem, config),)

    def _tuned(self, problem: Problem, config: Any, chip: Chip) -> "Tuned":
        from rpa_tune.interop.public.tpu_inference.calls import Tuned

        return Tuned(
            kernel=self.kernel,
            is_decode="decode" in self.slots,
            names=self.kernel_names(problem, config),
            problem=problem,
            config=config,
            chip=chip,
        )


def _default_config(
    kernel: str, case: str, config_type: type[Any], problem: Problem, target: Target
) -> Any:
    """What the public function chooses itself; needs the wheel."""
    if kernel == "mla":
        bad = mla.check_call(problem, target)
    else:
        bad = check_call(problem, target, is_hd64=config_type is Hd64Config)
    if bad:
        return bad
    if reason := PACKAGE.unavailable or why_untraceable(kernel):
        return refusal("jax", reason)
    from rpa_tune.interop.public.tpu_inference import own_choice  # here, because it loads jax

    fields = own_choice.block_sizes(kernel, case == "decode", problem, target)
    return fields if isinstance(fields, Infeasible) else config_type(**fields)


def _queries(problem: Problem, values: tuple[int, ...]) -> tuple[int, ...]:
    fitting = tuple(value for value in values if value <= problem.max_num_tokens)
    return fitting or values[:1]


def _v3_decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": (1,),
        "bkv_sz": kv_blocks.block_sizes(problem, (256, 512, 1024, 2048, 4096, 8192)),
        "bq_csz": (1,),
        "bkv_csz": kv_blocks.block_sizes(problem, (256, 512, 1024, 2048)),
    }


def _v3_mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (16, 32, 64, 128, 256)),
        "bkv_sz": kv_blocks.block_sizes(problem, (256, 512, 1024, 2048, 4096)),
        "bq_csz": _queries(problem, (16, 32, 64, 128)),
        "bkv_csz": kv_blocks.block_sizes(problem, (256, 512, 1024)),
    }


def _hd64_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return {
        "bq_sz": _queries(problem, (8, 16, 32, 64, 128)),
        "bkv_sz": kv_blocks.block_sizes(problem, (128, 256, 512, 1024, 2048, 4096)),
    }


def _batched_mixed_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    del target
    return mixed_axes(problem, _queries(problem, (16, 32, 64, 128, 256)))


def _stacked(axes: Callable[..., Any], problem: Problem, target: Target) -> Any:
    return {**axes(problem, target), "n_buffer": (_STACKED_BUFFERS,)}


def v3_name(letter: str, problem: Problem, config: V3Config) -> str:
    """Name of the Pallas call of a case: `d`, `p` or `m`. Source: `scope_name` in v3/kernel.py."""
    blocks = f"bq_{config.bq_sz}_{config.bq_csz}-bkv_{config.bkv_sz}_{config.bkv_csz}"
    return f"RPA{letter}-p_{problem.page_size}-{blocks}" + _window("-sw_", problem)


def _hd64_name(problem: Problem, config: Any) -> str:
    """The same. Source: `get_kernel_scope_name` in v3/kernel_hd64.py."""
    pages = config.bkv_sz // problem.page_size
    name = f"RPA-HD_64-bq_{config.bq_sz}-bkvp_{pages}-p_{problem.page_size}"
    return name + _window("-sw_", problem)


def _batched_name(letter: str, problem: Problem, config: Any) -> str:
    """The same. Source: `get_kernel_name` in batched_rpa/kernel.py and stacked_rpa/*/kernel.py."""
    blocks = f"b{config.batch_size}-q{config.bq_sz}-k{config.bkv_sz}"
    return f"RPA{letter}-p{problem.page_size}-{blocks}" + _window("-sw", problem)


def _window(prefix: str, problem: Problem) -> str:
    return "" if problem.sliding_window is None else f"{prefix}{problem.sliding_window}"


def _family(
    kernel: str, case: str, config_type: type[Any], axes: Callable[..., Any], name_of: Any
) -> TpuInferenceFamily:
    """Puts a family together; a case of decode or mixed, or an empty one for all sequences."""
    # No engine fills the prefill slot, and without a static chunk no call would serve it: its
    # sequences are handed to the mixed call, as an engine hands them.
    slots = _SLOTS.get(case, ("decode", "prefill", "mixed"))
    checks: dict[type[Any], Callable[..., Infeasible | None]] = {
        V3Config: check_v3, Hd64Config: check_hd64, BatchedConfig: check_batched,
        mla.MlaDecodeConfig: mla.check, mla.MlaMixedConfig: mla.check,
    }  # fmt: skip
    scratch: dict[str, Callable[..., int]] = {
        "v3": v3_scratch_bytes, "hd64": v3_scratch_bytes, "mla": mla.scratch_bytes,
    }  # fmt: skip
    return TpuInferenceFamily(
        name=f"public-{kernel}-{case}" if case else f"public-{kernel}",
        package=PACKAGE,
        kernel=kernel,
        case=case,
        config_type=config_type,
        check=checks[config_type],
        default_config=partial(_default_config, kernel, case, config_type),
        search_axes=axes,
        scratch_bytes=scratch.get(kernel, scratch_bytes),
        kernel_name=name_of,
        is_latent=kernel == "mla",
        **floors(slots),
    )


TPU_INFERENCE = {family.name: family for family in (
    _family("v3", "decode", V3Config, _v3_decode_axes, partial(v3_name, "d")),
    _family("v3", "mixed", V3Config, _v3_mixed_axes, partial(v3_name, "m")),
    _family("hd64", "", Hd64Config, _hd64_axes, _hd64_name),
    _family("batched", "decode", BatchedConfig, decode_axes, partial(_batched_name, "d")),
    _family("batched", "mixed", BatchedConfig, _batched_mixed_axes, partial(_batched_name, "m")),
    _family("stacked", "decode", BatchedConfig, partial(_stacked, decode_axes),
            partial(_batched_name, "d")),
    _family("stacked", "mixed", BatchedConfig, partial(_stacked, _batched_mixed_axes),
            partial(_batched_name, "m")),
    _family("mla", "decode", mla.MlaDecodeConfig, mla.decode_axes, mla.kernel_name),
    _family("mla", "mixed", mla.MlaMixedConfig, mla.mixed_axes, mla.kernel_name),
)}  # fmt: skip
