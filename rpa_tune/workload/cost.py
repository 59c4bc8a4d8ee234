"""What a launch costs a kernel, estimated from its lengths: the yardstick of compression.

Two uses: steps are grouped so that steps of a group cost alike, and the error of the compressed
set is its error in these costs. No block size of ours enters, since the workload must not know
the config it will judge; so several measures stand for the things that can bound a kernel.
Anything of the type `StepCosts` (a simulated time, say) can be passed in their place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.workload.engine import Step

FAMILIES = ("decode", "mixed")
Float64Array = npt.NDArray[np.float64]

# The proxy's kernel: Llama-3-8B attention in bfloat16 on v6e. Only proportions matter: times are
# used relative to each other. Rates are nominal (jax 0.10.2 `pltpu.TpuInfo`).
KV_BYTES_PER_TOKEN = 2 * 8 * 128 * 2
FLOPS_PER_POSITION = 4 * 32 * 128
HBM_BYTES_PER_US = 1.64e6
MXU_FLOPS_PER_US = 918e6
# Fixed cost of one copy. Source: fit of public device times on v6e, 155 cycles at 1.75 GHz.
COPY_US = 0.089
SEQUENCE_US = 0.3  # guess: pipeline fill between sequences
Q_BLOCK_TOKENS = 128  # guess: query rows that share one walk over the context
KV_BLOCK_TOKENS = 512  # guess: context rounded up to what a kernel computes at once


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


StepCosts = Callable[[Sequence[Step]], Costs]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyCosts:
    """The analytical proxy. Heuristic: proportions, not predictions.

    Attributes:
      block_size: Tokens in a page.
    """

    block_size: int

    def __call__(self, steps: Sequence[Step]) -> Costs:
        """Costs of every step: for each family the time and what can bound it."""
        q = np.concatenate([step.q_lens for step in steps]).astype(np.float64)
        kv = np.concatenate([step.kv_lens for step in steps]).astype(np.float64)
        num_seqs = np.array([step.num_seqs for step in steps])
        step_of = np.repeat(np.arange(len(steps)), num_seqs)
        rank = np.arange(len(q)) - np.repeat(np.cumsum(num_seqs) - num_seqs, num_seqs)
        is_decode = rank < np.repeat([step.num_decode for step in steps], num_seqs)

        # A query block ends at most at its own last position: walks of a chunk form a staircase.
        walks = np.ceil(q / Q_BLOCK_TOKENS)
        fetched = walks * (kv - (q - q / walks) / 2)
        blocked = walks * np.ceil(fetched / walks / KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
        copies = walks * np.ceil(fetched / walks / self.block_size)
        positions = q * kv - q * (q - 1) / 2
        hbm_us = fetched * KV_BYTES_PER_TOKEN / HBM_BYTES_PER_US
        mxu_us = positions * FLOPS_PER_POSITION / MXU_FLOPS_PER_US
        time_us = np.maximum(np.maximum(hbm_us, mxu_us), copies * COPY_US) + SEQUENCE_US

        measures = {
            "time_us": time_us,
            "fetched_tokens": fetched,
            "copies": copies,
            "blocked_tokens": blocked,
            "positions": positions,
        }
        names, columns = [], []
        for family, chosen in (("decode", is_decode), ("mixed", ~is_decode)):
            for measure, value in measures.items():
                if family == "decode" and measure == "positions":
                    continue  # the same as fetched_tokens when q is 1
                names.append(f"{family}.{measure}")
                columns.append(np.bincount(step_of, value * chosen, minlength=len(steps)))
        return Costs(names=tuple(names), values=np.stack(columns, axis=1))
