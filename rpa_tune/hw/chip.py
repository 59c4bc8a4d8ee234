"""The chips we know, loaded from `chips.yaml`. There is no default chip.

Numbers describe one TensorCore; a megacore device (v4, v5p) drives two that share HBM.
"""

import functools
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from rpa_kernels.names import did_you_mean, find_name
from rpa_kernels.target import Target
from rpa_tune.errors import UsageError

# A slice: its chip, then how many chips or cores it has, or its topology.
_SLICE = re.compile(r"(.+)[-:]\d+(?:x\d+)*")
CONFIDENCES = ("vendor", "compiler", "fitted", "guess", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One number of a chip, with its evidence.

    Attributes:
      value: In the unit its name says; None when not known.
      source: Where it is from.
      confidence: One of `CONFIDENCES`.
    """

    value: float | None
    source: str
    confidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One TPU generation.

    Attributes:
      name: `v4`, `v5e`, `v5p`, `v6e` or `v7x`.
      device_kinds: What `jax.Device.device_kind` may say.
      other_names: What people call it.
      jax_chip_version: Member of `pltpu.ChipVersion`.
      topology: Topology name for a device-free compile.
      topology_options: Keyword arguments that go with it.
      numbers: Every number by name, with source and confidence.
    """

    name: str
    device_kinds: tuple[str, ...]
    other_names: tuple[str, ...]
    jax_chip_version: str
    topology: str
    topology_options: tuple[tuple[str, str], ...]
    numbers: dict[str, Number] = field(hash=False, repr=False)

    def value(self, name: str) -> float:
        """One number that must be known.

        Raises:
          KeyError: No such number, or not known for this chip.
        """
        number = self.numbers[name]
        if number.value is None:
            raise KeyError(f"{name} of {self.name} is not known ({number.source})")
        return number.value

    @property
    def hbm_bytes_per_s(self) -> float:
        """Nominal HBM bandwidth of one TensorCore's share, bytes/s."""
        return self.value("hbm_bytes_per_s")

    @property
    def bf16_flops_per_s(self) -> float:
        """Peak bfloat16 MXU rate of one TensorCore, FLOP/s."""
        return self.value("bf16_flops_per_s")

    @property
    def clock_hz(self) -> float:
        """TensorCore clock, Hz; derived, see its source."""
        return self.value("clock_hz")

    @property
    def vmem_bytes(self) -> int:
        """VMEM of one TensorCore, bytes."""
        return int(self.value("vmem_bytes"))

    @property
    def num_cores_per_device(self) -> int:
        """TensorCores that one JAX device drives."""
        return int(self.value("num_cores_per_device"))

    @property
    def device_hbm_bytes(self) -> int:
        """HBM of one JAX device."""
        return int(self.value("hbm_bytes")) * self.num_cores_per_device

    def require_room(self, *, page_bytes: int, num_seqs: int) -> None:
        """Refuses pages so large that not every sequence can have even one.

        Args:
          page_bytes: Of one page of the KV cache on this device.
          num_seqs: Most sequences of a launch.

        Raises:
          UsageError: They do not fit.
        """
        have = self.device_hbm_bytes
        if page_bytes * num_seqs > have:
            raise UsageError(
                f"a page of {page_bytes:,} bytes for each of {num_seqs} sequences must fit the "
                f"{have:,} bytes of HBM of {self.name}",
                hint="use a smaller page_size, or fewer sequences",
            )

    @property
    def target(self) -> Target:
        """What a kernel may know of this chip."""
        return Target(
            chip=self.name,
            vmem_bytes=self.vmem_bytes,
            smem_bytes=int(self.value("smem_bytes")),
            mxu_size=int(self.value("mxu_size")),
            num_cores=self.num_cores_per_device,
            has_bf16_vector_units=bool(self.value("has_bf16_vector_units")),
            has_fp8_mxu=bool(self.value("has_fp8_mxu")),
            has_fast_fp8_mxu=(self.numbers["fp8_flops_per_s"].value or 0) > self.bf16_flops_per_s,
            has_result_buffers=bool(self.value("has_result_buffers")),
            has_faster_strided_copies=bool(self.value("has_faster_strided_copies")),
        )


def _parse_chip(name: str, row: dict[str, Any]) -> Chip:
    numbers = {
        key: Number(**field)
        for key, field in row.items()
        if isinstance(field, dict) and "confidence" in field
    }
    return Chip(
        name=name,
        device_kinds=tuple(row["device_kinds"]),
        other_names=tuple(row["other_names"]),
        jax_chip_version=row["jax_chip_version"],
        topology=row["topology"],
        topology_options=tuple(sorted(row["topology_options"].items())),
        numbers=numbers,
    )


@functools.cache
def load_chips() -> dict[str, Chip]:
    """All chips by name, oldest first."""
    text = resources.files("rpa_tune.hw").joinpath("chips.yaml").read_text()
    return {name: _parse_chip(name, row) for name, row in yaml.safe_load(text).items()}


@functools.cache
def chip_spellings() -> dict[str, str]:
    """Other name -> chip: what people call it, and what jax does."""
    return {
        other: chip.name
        for chip in load_chips().values()
        for other in (f"tpu {chip.name}", *chip.other_names, *chip.device_kinds)
    }


def find_chip(name: object) -> str | None:
    """The chip that a word names, or None.

    A slice names its chip: `v5litepod-16`, `v6e-8`, `v6e:2x4`.
    """
    found = find_name(name, load_chips(), chip_spellings())
    if found is None and isinstance(name, str) and (slice_of := _SLICE.fullmatch(name.strip())):
        found = find_name(slice_of[1], load_chips(), chip_spellings())
    return found


def load_chip(name: str) -> Chip:
    """One chip by name, or by another spelling of it (`V6E`, `trillium`, `v5litepod-16`).

    Raises:
      UsageError: No such chip.
    """
    chips = load_chips()
    found = find_chip(name)
    if found is None:
        hint = did_you_mean(name, chips, chip_spellings(), what="chips")
        raise UsageError(f"unknown chip {name!r}", hint=hint)
    return chips[found]


def chip_of_device_kind(device_kind: str) -> Chip:
    """The chip that a `jax.Device.device_kind` names.

    Raises:
      UsageError: No chip has that device kind.
    """
    for chip in load_chips().values():
        if device_kind in chip.device_kinds:
            return chip
    known = ", ".join(kind for chip in load_chips().values() for kind in chip.device_kinds)
    raise UsageError(f"unknown device kind {device_kind!r}", hint=f"known device kinds: {known}")
