"""What a check and its workers say to each other about an artefact. No jax."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactTask:
    """An artefact of one plan to build, or to run.

    Attributes:
      chip: Whose kernels the plan has.
      is_rehearsal: Whether a CPU stands in for the chip.
      path: The file.
      sha256: Digest that it must have; not known before it is built.
    """

    chip: str
    is_rehearsal: bool
    path: Path
    sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltArtifact:
    """What was built.

    Attributes:
      families: Of the plan, in launch order.
      sha256: Of the file.
      num_bytes: Of the file.
    """

    families: tuple[str, ...]
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunArtifact:
    """How its results compare with those of the jitted call, bit for bit.

    Attributes:
      output_bytes: Bytes of the output.
      output_bytes_changed: Those that differ.
      cache_bytes_changed: Bytes of the KV cache that differ.
    """

    output_bytes: int
    output_bytes_changed: int
    cache_bytes_changed: int
