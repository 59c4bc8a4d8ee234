"""The launches of a served workload with their sizes as arrays: which shape each is padded to."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rpa_kernels.slots import SLOTS
from rpa_tune.families.family import Family
from rpa_tune.models.buckets import Shape
from rpa_tune.workload.build import Served

IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]


class Launches:
    """Every step that an engine made of a workload; a step's number is its place in `served`."""

    def __init__(self, served: Served) -> None:
        """Looks at nothing yet."""
        self.served = served

    def launching(self, family: Family) -> BoolArray:
        """bool[num_steps]: whether a step has sequences of a family."""
        found: BoolArray = np.any([self._has[slot] for slot in family.slots], axis=0)
        return found

    def held_by(self, shapes: Iterable[Shape]) -> BoolArray:
        """bool[num_steps]: whether a step has as many tokens and sequences as one of the shapes."""
        found: BoolArray = np.any([self._held(shape) for shape in shapes], axis=0)
        return found

    def landing(self, shapes: Sequence[Shape]) -> IntArray:
        """int[num_steps]: place of the first shape that takes a step; `len(shapes)` if none."""
        landed = np.full(len(self._num_seqs), len(shapes))
        for place, shape in reversed(list(enumerate(shapes))):
            others = [self._has[slot] for slot in SLOTS if slot not in shape.families]
            taken = self._held(shape) & ~np.any([*others, np.zeros(len(landed), bool)], axis=0)
            landed[taken] = place
        return landed

    def _held(self, shape: Shape) -> BoolArray:
        tokens, seqs = self._num_tokens, self._num_seqs
        holds_tokens = (shape.above_tokens < tokens) & (tokens <= shape.num_tokens)
        return holds_tokens & (shape.above_seqs < seqs) & (seqs <= shape.num_seqs)

    @cached_property
    def _num_seqs(self) -> IntArray:
        return np.array([step.num_seqs for step in self.served.steps])

    @cached_property
    def _num_tokens(self) -> IntArray:
        q_lens = np.concatenate([step.q_lens for step in self.served.steps])
        ends = np.cumsum(self._num_seqs)
        return np.add.reduceat(q_lens, ends - self._num_seqs, dtype=np.intp)

    @cached_property
    def _has(self) -> dict[str, BoolArray]:
        """Slot -> bool[num_steps]: whether a step has sequences in it."""
        steps = self.served.steps
        num_decode = np.array([step.num_decode for step in steps])
        num_prefill = np.array([step.num_prefill for step in steps])
        num_mixed = self._num_seqs - num_decode - num_prefill
        return {"decode": num_decode > 0, "prefill": num_prefill > 0, "mixed": num_mixed > 0}
