"""What a launch costs a kernel, estimated from its lengths: the yardstick of compression.

Two uses: steps are grouped so that steps of a group cost alike, and the error of the compressed
set is its error in these costs. No block size of ours enters, since the workload must not know
the config it will judge; so several measures stand for the things that can bound a kernel.
Anything of the type `StepCosts` (a simulated time, say) can be passed in their place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rpa_kernels.slots import SLOTS
from rpa_tune.workload.step import EngineStep

Float64Array = npt.NDArray[np.float64]

# Fixed cost of one copy. Source: fit of public device times on v6e, 155 cycles at 1.75 GHz.
COPY_US = 0.089
SEQUENCE_US = 0.3  # guess: pipeline fill between sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyKernel:
    """The kernel, model and chip that the proxy has in mind; only proportions matter.

    The defaults are Llama-3-8B attention in bfloat16 (32 query heads, 8 KV heads, head_dim 128)
    on v6e at nominal rates. Source: jax 0.10.2 `pltpu.TpuInfo` for the rates; blocks are guesses.

    Attributes:
      q_block_tokens: Query rows that share one walk over the context.
      kv_block_tokens: Context is rounded up to this.
      kv_bytes_per_token: K and V of one context token.
      flops_per_position: Both matmuls of one query token with one context token.
      hbm_bytes_per_us: Memory rate.
      mxu_flops_per_us: Compute rate.
    """

    q_block_tokens: int = 128
    kv_block_tokens: int = 512
    kv_bytes_per_token: int = 2 * 8 * 128 * 2
    flops_per_position: int = 4 * 32 * 128
    hbm_bytes_per_us: float = 1.64e6
    mxu_flops_per_us: float = 920e6


# Kernels whose times compression preserves: small, middle and large blocks, slow and fast chips.
# The first is the one that `family.time_us` means.
# Source of rates: jax 0.10.2 `pltpu.TpuInfo`; blocks are guesses that span the search space.
PANEL = {
    "v6e, blocks of 128 x 512": ProxyKernel(),
    "v5e, blocks of 32 x 128": ProxyKernel(
        q_block_tokens=32, kv_block_tokens=128, hbm_bytes_per_us=0.82e6, mxu_flops_per_us=197e6
    ),
    "v7x, blocks of 512 x 4096": ProxyKernel(
        q_block_tokens=512, kv_block_tokens=4096, hbm_bytes_per_us=3.7e6, mxu_flops_per_us=1155e6
    ),
}
# Kernels that compression is not told of: the error in their times says how far the compressed
# set can be trusted for configs unlike the panel's.
HELD_OUT = {
    "v5p, blocks of 64 x 1024": ProxyKernel(
        q_block_tokens=64, kv_block_tokens=1024, hbm_bytes_per_us=1.23e6, mxu_flops_per_us=229.5e6
    ),
    "v6e, blocks of 256 x 2048": ProxyKernel(q_block_tokens=256, kv_block_tokens=2048),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Costs of some steps.

    Attributes:
      names: `family.measure` of each column; `family.time_us` must be among them.
      values: float64[num_steps, num_measures].
    """

    names: tuple[str, ...]
    values: Float64Array

    def column(self, name: str) -> Float64Array:
        """float64[num_steps], one measure."""
        return self.values[:, self.names.index(name)]


StepCosts = Callable[[Sequence[EngineStep]], Costs]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyCosts:
    """The analytical proxy. Heuristic: proportions, not predictions.

    Attributes:
      block_size: Tokens in a page.
      kernels: The kernels it stands for, by name; the first gives `family.time_us`.
    """

    block_size: int
    kernels: Mapping[str, ProxyKernel] = field(default_factory=lambda: PANEL)

    def __call__(self, steps: Sequence[EngineStep]) -> Costs:
        """Costs of every step: for each family its times, context fetched and copies started."""
        q = np.concatenate([step.q_lens for step in steps]).astype(np.float64)
        kv = np.concatenate([step.kv_lens for step in steps]).astype(np.float64)
        num_seqs = np.array([step.num_seqs for step in steps])
        step_of = np.repeat(np.arange(len(steps)), num_seqs)
        rank = np.arange(len(q)) - np.repeat(np.cumsum(num_seqs) - num_seqs, num_seqs)
        decode_end = np.repeat([step.num_decode for step in steps], num_seqs)
        prefill_end = decode_end + np.repeat([step.num_prefill for step in steps], num_seqs)
        slot = (rank >= decode_end).astype(int) + (rank >= prefill_end)

        measures: dict[str, Float64Array] = {}
        for number, (name, kernel) in enumerate(self.kernels.items()):
            suffix = f" @ {name}" if number else ""
            costs = _sequence_costs(kernel, q, kv, self.block_size)
            measures |= {f"{measure}{suffix}": value for measure, value in costs.items()}
        names, columns = [], []
        for number, family in enumerate(SLOTS):
            for measure, value in measures.items():
                names.append(f"{family}.{measure}")
                chosen = value * (slot == number)
                columns.append(np.bincount(step_of, chosen, minlength=len(steps)))
        return Costs(names=tuple(names), values=np.stack(columns, axis=1))


def _sequence_costs(
    kernel: ProxyKernel, q: Float64Array, kv: Float64Array, block_size: int
) -> dict[str, Float64Array]:
    """Measure -> float64[num_sequences].

    A query block ends at most at its own last position, so the walks over the context of a chunk
    form a staircase; the MXU works on whole blocks of context.
    """
    walks = np.ceil(q / kernel.q_block_tokens)
    walk = kv - (q - q / walks) / 2
    fetched = walks * walk
    copies = walks * np.ceil(walk / block_size)
    blocked = np.ceil(walk / kernel.kv_block_tokens) * kernel.kv_block_tokens
    hbm_us = fetched * kernel.kv_bytes_per_token / kernel.hbm_bytes_per_us
    mxu_us = q * blocked * kernel.flops_per_position / kernel.mxu_flops_per_us
    time_us = np.maximum(np.maximum(hbm_us, mxu_us), copies * COPY_US) + SEQUENCE_US
    return {"time_us": time_us, "fetched_tokens": fetched, "copies": copies}
