"""Few batches for many steps, and an error that is what it says."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels import load_family
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip
from rpa_tune.workload.build import Build, build_workload
from rpa_tune.workload.compress import compress
from rpa_tune.workload.cost import PANEL, Costs, ProxyCosts
from rpa_tune.workload.spec import read_spec
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.summary import summarise_build

PROXY = ProxyCosts(block_size=16)


def make_step(num_decode: int, chunk: int, context: int) -> EngineStep:
    q = [1] * num_decode + [chunk] * (chunk > 0)
    return EngineStep(
        start_us=0.0,
        q_lens=np.array(q, np.int32),
        kv_lens=np.array([context + i + n for i, n in enumerate(q)], np.int32),
        num_decode=num_decode,
    )


steps_strategy = st.lists(
    st.builds(make_step, st.integers(1, 9), st.sampled_from([0, 0, 2, 100]), st.integers(1, 9000)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=steps_strategy, num_batches=st.integers(1, 20))
def test_weights_are_shares_and_errors_are_true(steps: list[EngineStep], num_batches: int) -> None:
    found = compress(steps, num_batches, PROXY)
    kinds = {(s.num_decode > 0, s.num_decode < s.num_seqs) for s in steps}
    assert len(found.indices) <= max(num_batches, len(kinds))
    assert len(set(found.indices)) == len(found.indices)
    assert sum(found.weights) == pytest.approx(1.0)
    kept = [steps[i] for i in found.indices]
    assert {(s.num_decode > 0, s.num_decode < s.num_seqs) for s in kept} == kinds
    table = PROXY(steps)
    for name, error in found.errors.items():
        column = table.column(name)
        mean = sum(w * column[i] for i, w in zip(found.indices, found.weights, strict=True))
        assert error == pytest.approx(mean / column.mean() - 1.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(steps=steps_strategy)
def test_as_many_batches_as_steps_make_no_error(steps: list[EngineStep]) -> None:
    assert compress(steps, len(steps), PROXY).worst_error < 1e-6


@pytest.fixture(scope="module")
def conv() -> dict[int, Build]:
    mapping = {"preset": "azure-conv", "requests": {"limit": 600}}
    return {
        n: build_workload(read_spec({**mapping, "compress": {"batches": n}}, page_size=128))
        for n in (8, 16, 32)
    }


def test_thousands_of_steps_compress_with_a_small_error(conv: dict[int, Build]) -> None:
    build = conv[16]
    assert len(build.served.steps) > 1000
    assert len(build.workload.batches) == 16
    assert build.compression.worst_error < 0.03
    assert conv[32].compression.worst_error < conv[8].compression.worst_error


def test_error_in_kernels_not_told_of_is_reported_and_small(conv: dict[int, Build]) -> None:
    held_out = summarise_build(conv[32])["compression"]["held_out_time_error"]
    assert not set(held_out) & set(PANEL)
    errors = [abs(error) for errors in held_out.values() for error in errors.values()]
    assert len(errors) == 4
    assert max(errors) < 0.06


@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_error_holds_for_the_real_kernels_accounts(conv: dict[int, Build], family: str) -> None:
    """Bytes, copies and FLOPs that the families count themselves, under their default config."""
    build, kernel = conv[32], load_family(family)
    problem = Problem(
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        page_size=128,
        max_num_tokens=1024,
        max_num_seqs=64,
        pages_per_seq=64,
        num_pages=4096,
    )
    target = load_chip("v6e").target
    config = kernel.default_config(problem, target)

    def measure(batch: Batch) -> list[float]:
        traffic = kernel.traffic(problem, config, batch)
        flops = kernel.mxu_flops(problem, config, batch, target)
        return [traffic.read_bytes, traffic.write_bytes, traffic.num_copies, flops]

    full = np.mean([measure(step.batch(block_size=128)) for step in build.served.steps], axis=0)
    kept = np.sum(
        [wb.weight * np.array(measure(wb.batch)) for wb in build.workload.batches], axis=0
    )
    assert (full > 0).all()
    assert kept[[0, 1, 3]] == pytest.approx(full[[0, 1, 3]], rel=0.04)
    # How many copies a step needs depends on its page table, too, which compression does not see.
    assert kept[2] == pytest.approx(full[2], rel=0.06)


def test_another_time_can_be_passed_in() -> None:
    """A time that only sees the number of sequences: groups must be by that, and exact."""

    def by_sequences(steps: Sequence[EngineStep]) -> Costs:
        return Costs(
            names=("decode.time_us",),
            values=np.array([[float(step.num_seqs)] for step in steps]),
        )

    steps = [make_step(1 + i % 4, 0, 10 + 37 * i) for i in range(100)]
    found = compress(steps, 4, by_sequences)
    assert sorted(steps[i].num_seqs for i in found.indices) == [1, 2, 3, 4]
    assert found.weights == pytest.approx([0.25] * 4)
    assert found.errors == {"decode.time_us": pytest.approx(0.0)}


def test_proxy_rises_with_what_it_should() -> None:
    steps = [
        make_step(4, 0, 1000),
        make_step(4, 0, 9000),
        make_step(8, 0, 9000),
        make_step(8, 100, 9000),
    ]
    costs = PROXY(steps)
    decode, mixed = costs.column("decode.time_us"), costs.column("mixed.time_us")
    assert decode[0] < decode[1] < decode[2] == decode[3]
    assert mixed[:3].tolist() == [0.0, 0.0, 0.0]
    assert mixed[3] > 0.0
    fetched = costs.column("decode.fetched_tokens")
    assert fetched[0] == sum(range(1001, 1005))
