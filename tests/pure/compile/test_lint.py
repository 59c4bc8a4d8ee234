"""The compiler's linter: which versions have it, and what its refusals say."""

import pytest

from rpa_tune.candidate import Status
from rpa_tune.compile.lint import has_linter, lint_of, linter_flags

# What libtpu 0.0.52 raised for two copies into one buffer, and for a buffer that nobody wrote.
RACE = (
    "INTERNAL: RET_CHECK failure (platforms/xla/service/jellyfish/llo/llo_code_stepper.cc:106) "
    "[LLO_LINT] dma_race :: DMA attempts to write live buffer: @(jit_f:<no-hlo-instruction>) "
    "{#4 dma-(%26::lint_me.1)-dst-buffer @vmem(w) [0,8):8} overlaps with live buffers"
)
POISON = (
    "INTERNAL: RET_CHECK failure (platforms/xla/service/jellyfish/llo/llo_code_stepper.cc:106) "
    "[LLO_LINT] vmem_poison_use :: Poisoned Vmem value use detected: @(jit_f:lint_me.1)"
)


@pytest.mark.parametrize(
    ("libtpu", "there"),
    [(None, False), ("0.0.42.1", False), ("0.0.51", False), ("0.0.52", True), ("0.0.53", True)],
)
def test_versions_before_0_0_52_have_no_linter(libtpu, there):
    assert has_linter(libtpu) is there


def test_a_finding_is_told_from_a_compile_that_failed_and_from_one_that_passed():
    race = lint_of(Status.COMPILE_FAILED, RACE)
    assert (race.status, race.kind) == (Status.WRONG_ANSWER, "dma_race")
    assert race.detail.startswith("DMA attempts to write live buffer")
    assert lint_of(Status.COMPILE_FAILED, POISON).kind == "vmem_poison_use"
    failed = lint_of(Status.COMPILE_FAILED, "INTERNAL: Mosaic failed")
    assert (failed.status, failed.kind) == (Status.COMPILE_FAILED, "")
    assert failed.detail == "INTERNAL: Mosaic failed"
    assert lint_of(Status.OK, "").status is Status.OK


def test_the_flags_name_the_targets():
    assert linter_flags().endswith("targets=dma_race;bounds_check")
    assert linter_flags(("vmem_poison_use",)).endswith("targets=vmem_poison_use")
