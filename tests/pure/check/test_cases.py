"""What a check runs can exist on every chip, and leans on different things."""

import pytest

from rpa_kernels.slots import FAMILIES, SLOTS
from rpa_tune.check.cases import correctness_cases, kernel_cases
from rpa_tune.evaluate.evaluator import find_obstacle
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.workload.workload import Workload

# Two sets of inputs, an output, and what a check holds beside them must fit the smallest HBM.
_MOST_CACHE_BYTES = 1 << 30


@pytest.mark.parametrize("is_rehearsal", [False, True])
@pytest.mark.parametrize("chip", load_chips())
def test_every_case_can_be_run(chip, is_rehearsal):
    target = load_chip(chip).target
    for make in (correctness_cases, kernel_cases):
        cases = make(chip, is_rehearsal=is_rehearsal)
        assert len({case.name for case in cases}) == len(cases)
        families = {case.candidate.family.name for case in cases}
        if make is kernel_cases:
            assert families == set(SLOTS)
        else:
            assert families == {*SLOTS, "mla-decode"} if is_rehearsal else set(FAMILIES)
        for case in cases:
            candidate = case.candidate
            problem = candidate.problem
            assert candidate.family.check(problem, candidate.config, target) is None
            assert [batch.misfit(problem) for batch in case.batches] == [None] * len(case.batches)
            assert problem.num_pages * problem.page_bytes <= _MOST_CACHE_BYTES


@pytest.mark.parametrize("is_rehearsal", [False, True])
def test_kernels_have_one_batch_of_their_family_and_lie_about_in_memory(is_rehearsal):
    cases = kernel_cases("v6e", is_rehearsal=is_rehearsal)
    assert len(cases) == 10
    for case in cases:
        assert find_obstacle(case.candidate, case.workload) == ""
        (batch,) = case.batches
        pages = batch.pages(case.candidate.problem)
        assert len(batch.family_seqs(case.candidate.family.name)) == batch.num_seqs
        longest = max(pages, key=len)
        if len(longest) > 4:
            assert list(longest) != sorted(longest)
        assert Workload.from_dict(case.workload.to_dict()).digest == case.candidate.workload


def test_correctness_covers_what_breaks_kernels():
    cases = correctness_cases("v6e", is_rehearsal=False)
    problems = [case.candidate.problem for case in cases]
    assert {p.head_dim for p in problems} == {64, 128, 256, 512}
    assert {p.kv_dtype for p in problems} == {"bfloat16", "float8_e4m3fn", "float32"}
    assert {p.page_size for p in problems} == {16, 32, 64, 128, 256}
    assert any(p.has_sinks and p.sliding_window for p in problems)
    assert any(p.soft_cap for p in problems)
    latents = [p for p in problems if p.is_latent]
    assert {p.row_tokens for p in latents} == {2, 32}
    assert {p.decode_query_size for p in latents} == {1, 4}
    for case in cases:
        block, page = case.candidate.config.bkv_sz, case.candidate.problem.page_size
        lengths = {n for batch in case.batches for n in batch.kv_lens}
        assert {block - 1, block, block + 1} <= lengths
        if case.candidate.family.name != "prefill":  # whose chunks are at least a page
            assert {1, page - 1, page, page + 1} <= lengths
