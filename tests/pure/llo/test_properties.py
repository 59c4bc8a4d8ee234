"""What must hold for any batch, on golden kernels of every chip."""

from dataclasses import replace

import pytest
from golden import make
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels.batch import Batch
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate

DECODE = [f"0.0.42.1/{chip}_decode.txt.gz" for chip in ("v4", "v5e", "v5p", "v6e", "v7x")]
MIXED = [f"0.0.50.1/{chip}_mixed.txt.gz" for chip in ("v5e", "v6e", "v7x")]
SETTINGS = settings(deadline=None, max_examples=12)
LENGTHS = st.lists(st.integers(1, 256), min_size=1, max_size=8)


def run(name, batch, machine=None):
    chip, family = make.chip_and_family(make.DUMPS / name)
    return simulate(make.program(name), machine or load_machine(chip), make.operands(family, batch))


def decode(lengths):
    return Batch(q_lens=(1,) * len(lengths), kv_lens=tuple(lengths), num_decode=len(lengths))


@st.composite
def mixed_batches(draw):
    q_lens = draw(st.lists(st.integers(1, 16), min_size=1, max_size=4))
    kv_lens = [draw(st.integers(q, 256)) for q in q_lens]
    return Batch(q_lens=tuple(q_lens), kv_lens=tuple(kv_lens), num_decode=0)


@pytest.mark.parametrize("name", DECODE)
@SETTINGS
@given(lengths=LENGTHS)
def test_the_kernel_reads_every_cached_token_once(name, lengths):
    timeline = run(name, decode(lengths))
    # Old tokens come from the cache, the new one and the query from their own arrays; what is
    # written is the output block and the new token.
    token_bytes = 2 * 128 * 2
    assert timeline.read_bytes >= sum(lengths) * token_bytes
    assert timeline.write_bytes >= len(lengths) * token_bytes
    assert not timeline.unknown


@pytest.mark.parametrize("name", [*DECODE, *MIXED])
@SETTINGS
@given(data=st.data(), seed=st.integers(0, 1000))
def test_renaming_pages_changes_nothing(name, data, seed):
    batch = data.draw(LENGTHS.map(decode) if name in DECODE else mixed_batches())
    here = run(name, batch)
    there = run(name, replace(batch, page_seed=seed + 1))
    assert here == there


@pytest.mark.parametrize("name", DECODE)
@SETTINGS
@given(lengths=LENGTHS, more=st.integers(1, 256), pick=st.integers(0, 7))
def test_more_context_never_takes_less_time(name, lengths, more, pick):
    index = pick % len(lengths)
    longer = list(lengths)
    longer[index] = min(256, longer[index] + more)
    before = run(name, decode(lengths))
    after = run(name, decode(longer))
    # A block that becomes full needs no clearing of its end: that, and how copies queue behind
    # each other, may win back a little.
    assert after.total_cycles >= before.total_cycles * 0.98


@pytest.mark.parametrize("name", DECODE)
@SETTINGS
@given(lengths=LENGTHS, data=st.data())
def test_order_of_sequences_changes_order_effects_only(name, lengths, data):
    shuffled = data.draw(st.permutations(lengths))
    here = run(name, decode(lengths))
    there = run(name, decode(shuffled))
    assert here.read_bytes == there.read_bytes
    assert here.write_bytes == there.write_bytes
    assert here.num_copies == there.num_copies
    # The first and the last sequence take branches of their own, which a short run feels most.
    assert abs(here.num_bundles - there.num_bundles) <= 0.05 * here.num_bundles + 64
    # What is prefetched behind what differs, by at most a block's wait per sequence.
    block_wait = load_machine(here.chip).value("read_latency_cycles") * 2
    assert abs(here.total_cycles - there.total_cycles) <= len(lengths) * block_wait


SLOWER = {
    "read_fixed_cycles": 3.0,
    "read_latency_cycles": 3.0,
    "write_latency_cycles": 3.0,
    "read_linear_bytes_per_s": 0.3,
    "read_strided_bytes_per_s": 0.3,
    "write_linear_bytes_per_s": 0.3,
    "write_strided_bytes_per_s": 0.3,
    "matmul_latency_bf16_cycles": 2.0,
    "matmul_latency_f32_cycles": 2.0,
    "launch_us": 2.0,
}


@pytest.mark.parametrize("parameter", sorted(SLOWER))
@pytest.mark.parametrize("name", [DECODE[3], MIXED[2]])
def test_a_slower_part_never_makes_a_kernel_faster(name, parameter):
    chip, family = make.chip_and_family(make.DUMPS / name)
    machine = load_machine(chip)
    value = machine.value(parameter) * SLOWER[parameter]
    slower = machine.with_values({parameter: value}, source="test", confidence="guess")
    before = run(name, make.BATCHES[family])
    after = run(name, make.BATCHES[family], slower)
    assert after.total_cycles >= before.total_cycles
    assert after.num_bundles == before.num_bundles, "control flow does not depend on time"


@pytest.mark.parametrize("name", [*DECODE, *MIXED])
def test_time_covers_what_every_unit_must_do(name):
    _, family = make.chip_and_family(make.DUMPS / name)
    timeline = run(name, make.BATCHES[family])
    assert sum(timeline.cycles_by_owner.values()) == timeline.total_cycles
    assert timeline.total_cycles >= timeline.num_bundles
    assert timeline.total_cycles >= max(timeline.read_busy_cycles, timeline.write_busy_cycles)
    machine = load_machine(timeline.chip)
    assert timeline.mxu_busy_cycles <= timeline.total_cycles * machine.value("num_mxus")
    assert all(0 <= use.share <= 1 for use in timeline.slots.values())
    outermost = [loop for loop in timeline.loops if loop.depth == 1]
    assert sum(loop.cycles for loop in outermost) <= timeline.total_cycles
