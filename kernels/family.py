"""What every kernel family provides: the recipe for a family folder.

A family is one folder (`decode/`, `mixed/`, ...) whose `__init__.py` exports `FAMILY`, a
`KernelFamily`. To add one:

1. `config.py` [no jax]: a frozen dataclass of plain ints, the tunables (tokens unless the name
   says otherwise). A record: it imports nothing that reads it. A field that comes later has the
   default that makes what was before: rows and journals without it stay what they are.
2. `account.py` [no jax]: bytes, FLOPs and steps of the kernel as plain integers.
3. `fits.py` [no jax]: `check`, which reads the account.
4. `space.py` [no jax]: `search_axes` and `default_config`. Nothing but the record reads it: it is
   outside the digest of the kernel's sources, so no program may depend on it.
5. `scratch.py`: named scratch refs and their shapes.
6. `kernel.py`: the body, in phases.
7. `launch.py`: the `pallas_call`.
8. List the name in `rpa_kernels.FAMILIES`.

The tuner knows a family only through this record. No jax is imported here.

**What an account is given.** The tuner asks `traffic`, `mxu_flops` and `num_steps` about hundreds
of configs and computes each once for all that it cannot tell apart. To see which fields decide, it
passes an object that has a config's fields, properties and methods but is none: `config` there is
to be read by attribute (`config.bkv_sz`), and passed on to functions that do the same. It is not to
be hashed or compared (so no function that is given one is cached by `functools`), copied by
`dataclasses.replace`, `asdict`, `astuple` or `copy`, or written to: all of these raise `TypeError`,
rather than read fields behind the tuner's back. Of a dataclass it is no instance.
"""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass
from typing import Any, Protocol, Self

from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


class Config(Protocol):
    """One point of a family's search space: a frozen, hashable dataclass of ints."""

    __dataclass_fields__: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """HBM bytes that a kernel moves by DMA for one batch, both directions told apart.

    Counts what the DMAs move, rounding and re-reads included; scalar prefetch is apart because
    the compiler, not the kernel, issues it.

    Attributes:
      read_bytes: HBM to VMEM.
      write_bytes: VMEM to HBM.
      num_copies: DMA descriptors with a size above zero.
    """

    read_bytes: int
    write_bytes: int
    num_copies: int

    @property
    def total_bytes(self) -> int:
        """Bytes in both directions."""
        return self.read_bytes + self.write_bytes

    def __add__(self, other: Self) -> "Traffic":
        """Sums field by field."""
        return Traffic(
            read_bytes=self.read_bytes + other.read_bytes,
            write_bytes=self.write_bytes + other.write_bytes,
            num_copies=self.num_copies + other.num_copies,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelFamily:
    """The public names of one family folder.

    Attributes:
      name: Folder name.
      config_type: The config dataclass.
      check: `(problem, config, target) -> Infeasible | None`: None when the config can exist, else
        the limit that it breaks.
      default_config: `(problem, target) -> config` that fits, or an `Infeasible`: the heuristic
        used when no table row matches.
      search_axes: `(problem, target) -> {config field: values in rising order}`.
      scratch_bytes: `(problem, config, target) -> bytes` of VMEM scratch after tiling.
      smem_bytes: `(problem, config) -> bytes` of SMEM.
      partition: `(problem, config, arrays, num_cores, xp=numpy) -> int32 array`, on `BatchArrays`:
        where each core's range starts, and where the last one ends. A scalar operand of launches
        on more than one core. None for a kernel that uses one core whatever the device has.
      traffic: `(problem, config, batch, core=ONLY_CORE) -> Traffic` of one `cores.Core`, exact for
        the compiled kernel.
      useful_bytes: `(problem, batch) -> bytes` that no kernel could avoid moving; for MBU.
      mxu_flops: `(problem, config, batch, target, core=ONLY_CORE) -> FLOPs` that a core's MXUs
        execute, padding included; those of a product that takes half the time count half.
      useful_flops: `(problem, batch) -> FLOPs` of the attention alone (causal positions, both
        matmuls, 2 FLOPs a multiply-add); for MFU.
      num_steps: `(problem, config, batch, core=ONLY_CORE) -> ` KV-block steps a core walks.
      launch: `(q, kv_new, kv_cache, kv_lens, page_indices, cu_q_lens, distribution, *, problem,
        config, target, interpret=None, sinks=None, page_runs=None, lse=None, tree_mask=None) ->
        (out, kv_cache)`,
        and the log-sum-exp as the third with `problem.return_lse`, on inputs laid out by
        `rpa_kernels.inputs.prepare`; output rows of sequences that other families serve
        are passed through, so that launches chain.
      kernel_name: `(problem, config) -> str`, the `name=` of the Pallas call, found again in
        compiler dumps and profiles.
    """

    name: str
    config_type: type[Any]
    check: Callable[[Problem, Any, Target], Infeasible | None]
    default_config: Callable[[Problem, Target], Any]
    search_axes: Callable[[Problem, Target], dict[str, tuple[int, ...]]]
    scratch_bytes: Callable[[Problem, Any, Target], int]
    smem_bytes: Callable[[Problem, Any], int]
    partition: Callable[..., Any] | None
    traffic: Callable[..., Traffic]
    useful_bytes: Callable[[Problem, Batch], int]
    mxu_flops: Callable[..., int]
    useful_flops: Callable[[Problem, Batch], int]
    num_steps: Callable[..., int]
    launch: Callable[..., Any]
    kernel_name: Callable[[Problem, Any], str]

    def config_from_dict(self, fields: dict[str, int]) -> Any:
        """Builds a config from its JSON form.

        Raises:
          ValueError: A field is unknown, not an integer, or missing and without a default.
        """
        known = self.config_type.__dataclass_fields__
        missing = sorted(
            name for name in known if name not in fields and known[name].default is MISSING
        )
        extra = sorted(set(fields) - set(known))
        if missing or extra:
            raise ValueError(f"{self.name} config: missing {missing}, unknown {extra}")
        for name, value in fields.items():
            if type(value) is not int:
                raise ValueError(f"{self.name} config: {name}={value!r} is not an integer")
        return self.config_type(**fields)

    @staticmethod
    def config_to_dict(config: Any) -> dict[str, int]:
        """The JSON form of a config."""
        return config_to_dict(config)


def config_to_dict(config: Any) -> dict[str, int]:
    """The JSON form of a config, without the fields that have a default and are at it.

    What is kept of a config is in this form, and is compared in it, so that what was kept before a
    field came is kept of the same config.
    """
    defaults = {name: field.default for name, field in config.__dataclass_fields__.items()}
    return {name: value for name, value in asdict(config).items() if value != defaults[name]}
