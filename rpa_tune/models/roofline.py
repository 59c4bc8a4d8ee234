"""What a step of a model costs beside its attention, by roofline, and what its device has room for.

A roofline is no simulation: every byte at the nominal rate of HBM, every multiplication at the peak
of the matrix units, the longer of the two. Left out are collectives between devices, sampling,
norms and whatever a step does on the host, so that real steps are longer and attention's share of
them smaller. No jax.
"""

from dataclasses import dataclass

from rpa_tune.hw.chip import Chip
from rpa_tune.models.weights import Weights

# Bytes of a parameter as a server may keep its weights. Scales of quantised ones are left out.
WEIGHT_BYTES = {
    "float32": 4.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0, "int8": 1.0, "int4": 0.5,
}  # fmt: skip
# The share of HBM that an engine gives to weights and KV cache.
# Source: `gpu_memory_utilization` of vLLM, which tpu-inference 0.32.0 reads.
HBM_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """One device of a server: its share of the matrices, and how fast it can read and multiply.

    Attributes:
      weights: Of the whole model; each device has 1/tp of every matrix.
      chip: Where it runs.
      tp: Devices that share the matrices.
      weight_dtype: One of `WEIGHT_BYTES`.
      ranks: Of these devices, those that have sequences of their own. All matrices see the tokens
        of all of them.
    """

    weights: Weights
    chip: Chip
    tp: int
    weight_dtype: str = "bfloat16"
    ranks: int = 1

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights that the device holds."""
        return self.weights.total_params * WEIGHT_BYTES[self.weight_dtype] / self.tp

    def step_us(self, num_tokens: int, num_sampled: int) -> float:
        """Least time of a step's matrix products.

        Args:
          num_tokens: New tokens, of one rank.
          num_sampled: Sequences of one rank: the last token of each is sampled from.
        """
        num_tokens, num_sampled = num_tokens * self.ranks, num_sampled * self.ranks
        read_bytes = self.weights.touched_params(num_tokens) * WEIGHT_BYTES[self.weight_dtype]
        read_s = read_bytes / self.tp / hbm_bytes_per_s(self.chip)
        flops = self.weights.flops(num_tokens, num_sampled) / self.tp
        return 1e6 * max(read_s, flops / _flops_per_s(self.chip))

    def clock(self, token_bytes: float) -> dict[str, float]:
        """The same as a straight line: the fields of `workload.knobs.StepTime`.

        Args:
          token_bytes: Bytes of the KV cache that a token of context is, on one device.
        """
        least_us = self.step_us(1, 1)
        many = 1 << 20
        return {
            "weights_us": least_us,
            "us_per_token": self.step_us(many, 1) / many,
            "us_per_context_token": 1e6 * token_bytes / hbm_bytes_per_s(self.chip),
        }


def hbm_bytes(chip: Chip) -> float:
    """HBM of one device, bytes."""
    return chip.value("hbm_bytes") * chip.num_cores_per_device


def hbm_bytes_per_s(chip: Chip) -> float:
    """Nominal rate of HBM of one device, bytes/s."""
    return chip.hbm_bytes_per_s * chip.num_cores_per_device


def _flops_per_s(chip: Chip) -> float:
    """Peak of the matrix units of one device in bfloat16, which quantised weights become."""
    return chip.bf16_flops_per_s * chip.num_cores_per_device
