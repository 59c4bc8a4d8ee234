"""tokamax's ragged paged attention as families: one for each Pallas call that serves an engine.

The cache has the layout with heads along sublanes, which is the function's default and that of
the other batched kernels. No jax, no wheel: what needs them is in `calls.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.batched import BatchedConfig, decode_axes, scratch_bytes
from rpa_tune.interop.public.family import PublicFamily, floors
from rpa_tune.interop.public.tokamax import table
from rpa_tune.interop.public.tokamax.configs import (
    check,
    kernel_name,
    mixed_axes,
    own_choice,
)
from rpa_tune.interop.public.tokamax.package import PACKAGE


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class TokamaxFamily(PublicFamily):
    """A Pallas call of tokamax's function.

    Attributes:
      case: `decode`, or `mixed` for all other sequences.
    """

    case: str

    def call(self, problem: Problem, config: Any, chip: Chip) -> Call:
        """The whole public function, to be compiled for the sake of this call in it."""
        from rpa_tune.interop.public.tokamax import calls  # here, because it loads jax

        return calls.call(self.case, problem, config, chip)

    def scalar_operands(
        self, problem: Problem, config: Any, chip: Chip, batch: Batch
    ) -> Mapping[int, Any]:
        """What the function's own code hands to the call."""
        from rpa_tune.interop.public.tokamax import calls

        return calls.scalar_operands(self.case, problem, config, chip, batch)

    def shipped_configs(self) -> Iterable[tuple[str, Problem, Any]]:
        """Those of tokamax's own tables."""
        return table.shipped_configs(self.case)


def _family(case: str, letter: str, slots: tuple[str, ...], axes: Any) -> TokamaxFamily:
    return TokamaxFamily(
        name=f"public-tokamax-{case}",
        package=PACKAGE,
        case=case,
        config_type=BatchedConfig,
        check=partial(check, case),
        default_config=partial(own_choice, case),
        search_axes=axes,
        scratch_bytes=scratch_bytes,
        kernel_name=partial(kernel_name, letter),
        **floors(slots),
    )


TOKAMAX = {
    family.name: family
    for family in (
        _family("decode", "d", ("decode",), decode_axes),
        # As an engine does, sequences of the prefill slot are handed to the mixed call.
        _family("mixed", "m", ("prefill", "mixed"), mixed_axes),
    )
}
