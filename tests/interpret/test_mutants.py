"""`verify` fails for a kernel with any wait missing, short, late or on another semaphore.

The waits are those of the traced kernel (`mutants.py`), so a new one is tried without an edit here.
"""

import functools

import jax
import pytest
from interpret.kernel_cases import V6E, blockwise_config, decode_config, make_problem
from interpret.mutants import START_FAULTS, WAIT_FAULTS, Subject

from rpa_kernels import load_family
from rpa_kernels.batch import Batch
from rpa_kernels.pages import Meta
from rpa_kernels.verify import spoil_unused, verify
from rpa_kernels.watch import DMA_MODES

PROBLEM = make_problem(num_q_heads=1, num_kv_heads=1, has_sinks=True, max_num_tokens=32)
LANES = make_problem(
    num_q_heads=1, num_kv_heads=1, max_num_tokens=32, page_size=128, pages_per_seq=4, num_pages=16,
    kv_layout="seq_along_lane",
)  # fmt: skip
LATENT = make_problem(
    num_q_heads=1, num_kv_heads=1, head_dim=128, rope_dim=64, max_num_tokens=32, decode_query_size=3
)
OTHERS = {"along lanes": LANES, "of latents": LATENT}
# Small, and yet every wait is for some bytes: several blocks of queries, buffers used again, and
# new tokens in the last two KV blocks of all.
CASES = {
    "decode": (
        decode_config(bq_sz=2),
        Batch(q_lens=(1,) * 7, kv_lens=(1, 16, 17, 140, 3, 15, 18), num_decode=7),
    ),
    "mixed": (
        blockwise_config(),
        Batch(q_lens=(1, 17, 14), kv_lens=(20, 40, 135), num_decode=1),
    ),
    "prefill": (
        blockwise_config(),
        Batch(q_lens=(1, 10, 10, 10), kv_lens=(20, 29, 40, 135), num_decode=1, num_prefill=3),
    ),
}
CASES |= {f"{family} along lanes": CASES[family] for family in ("decode", "mixed")}
CASES["decode of strided copies"] = (
    decode_config(bq_sz=2, strided_copies=1), CASES["decode"][1]
)  # fmt: skip
CASES |= {
    "mla-decode of latents": (
        decode_config(bq_sz=2),
        Batch(q_lens=(1, 3, 1, 3, 2, 1, 3), kv_lens=(1, 16, 17, 140, 3, 15, 18), num_decode=7),
    ),
    "mla-mixed of latents": CASES["mixed"],
}
# (family, functions that lead to the wait) that no fault of which is found, and why, as README.md
# of the kernels has it; there are none.
UNCAUGHT: set[tuple[str, str]] = set()


@functools.cache
def subject(family: str) -> Subject:
    (config, batch), (name, _, other) = CASES[family], family.partition(" ")
    return Subject(name, OTHERS.get(other, PROBLEM), config, batch, V6E)


def sites(family: str, kind: str, dma_mode: str) -> list[tuple[int, str]]:
    """Waits or starts of the kernel as it is, which is right, with what they are for."""
    tried = subject(family)
    assert tried.problems(dma_mode=dma_mode) == ""
    found = [(index, name) for (k, index), name in tried.names.items() if k == kind]
    busy = [(index, name) for index, name in found if tried.num_bytes[kind, index]]
    if kind == "wait":
        assert busy == found, "waits that the batch above has no bytes for"
        return found
    # Of a copy that is laid out several times one will do; not all have pages to fetch.
    return [(index, name) for name, index in {name: index for index, name in busy}.items()]


def test_a_kernel_without_wait_write_races():
    tried = [
        index for index, name in sites("mixed", "wait", "eager") if "Kernel.wait_write" in name
    ]
    assert len(tried) >= 2
    for index in tried:
        for fault in ("missing", "late"):
            assert "data race" in subject("mixed").problems(fault, index, dma_mode="eager")


def test_a_kernel_of_latents_without_a_wait_is_found():
    """The last step's tiles are not in the cache when the kernel ends, or it reads stale rows."""
    family = "mla-decode of latents"
    for function in ("TileWrites.drain", "PagedCache.wait"):
        index = next(i for i, name in sites(family, "wait", "on_wait") if function in name)
        assert subject(family).problems("missing", index, dma_mode="on_wait")


def test_entries_that_no_kernel_may_use_are_out_of_bounds():
    problem = make_problem(sliding_window=20, pages_per_seq=4, max_num_seqs=4)
    batch = Batch(q_lens=(1, 17, 1), kv_lens=(64, 17, 16), num_decode=1)
    spoiled = spoil_unused(batch.arrays(problem), problem)
    end, far, least = problem.num_pages, 2**31 - 1, -(2**31)
    own = batch.pages(problem)
    assert spoiled.page_indices.reshape(4, 4).tolist() == [
        [-1, end, *own[0][2:]],  # behind the window of its one query
        [*own[1], far, least],
        [*own[2], end, far, least],
        [-1, end, far, least],
    ]
    assert spoiled.kv_lens.tolist() == [64, 17, 16, least]


def test_a_kernel_that_uses_such_an_entry_is_found(monkeypatch):
    real = Meta.entry
    monkeypatch.setattr(Meta, "entry", lambda self, seq, index: real(self, seq, index + 1))
    config, batch = CASES["decode"]
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"Out-of-bounds|before the start"):
        verify(load_family("decode"), PROBLEM, config, batch, target=V6E)


@pytest.mark.slow
@pytest.mark.parametrize("dma_mode", DMA_MODES)
@pytest.mark.parametrize("family", CASES)
def test_every_fault_of_a_wait_is_found(family, dma_mode):
    survivors = {
        (family, name)
        for index, name in sites(family, "wait", dma_mode)
        for fault in WAIT_FAULTS
        if not subject(family).problems(fault, index, dma_mode=dma_mode)
    }
    assert survivors == {(f, name) for f, name in UNCAUGHT if f == family}


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_a_copy_that_is_under_way_twice_is_a_race(family):
    for index, name in sites(family, "start", "on_wait"):
        for fault in START_FAULTS:
            found = subject(family).problems(fault, index, dma_mode="on_wait")
            assert "data race" in found, name
