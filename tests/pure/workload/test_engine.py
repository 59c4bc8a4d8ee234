"""The engine emits legal batches, serves every request, and follows the engines it stands for."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpa_kernels.problem import Problem
from rpa_tune.workload.engine import SimulatedEngine
from rpa_tune.workload.knobs import EngineKnobs, KvRole, Scheduler, StepTime
from rpa_tune.workload.request import Request
from rpa_tune.workload.scheduler import SchedulerState
from rpa_tune.workload.step import EngineStep

Lens = list[tuple[list[int], list[int], int]]


def run(
    requests: Sequence[Request], knobs: EngineKnobs, **options: int
) -> tuple[SimulatedEngine, list[EngineStep]]:
    engine = SimulatedEngine(requests, knobs, **options)
    return engine, list(engine.run())


def request(prompt: int, output: int, *, at: float = 0.0, **fields: object) -> Request:
    return Request(arrival_s=at, prompt_tokens=prompt, output_tokens=output, **fields)


def lens(steps: Sequence[EngineStep]) -> Lens:
    return [(step.q_lens.tolist(), step.kv_lens.tolist(), step.num_decode) for step in steps]


def requests_of(engine: SimulatedEngine, step: EngineStep) -> list[Request]:
    """The request behind each sequence of the step that was yielded last."""
    by_pages = {id(sequence.pages): sequence.request for sequence in engine._state.running}
    return [by_pages[id(pages)] for pages in step.page_lists]


def common_tokens(one: Request, two: Request) -> int:
    """Tokens with which both begin, by what `Request.prefix` means."""
    if one is two:
        return 2**31
    ends, others = dict(one.prefix), dict(two.prefix)
    return max((min(end, others[key]) for key, end in ends.items() if key in others), default=0)


def assert_legal(step: EngineStep, knobs: EngineKnobs, requests: Sequence[Request]) -> None:
    """What an attention kernel may rely on, checked without the engine's own code."""
    table = step.page_table(knobs.block_size)
    assert 1 <= step.num_seqs <= knobs.max_num_seqs
    assert step.q_lens.sum() <= knobs.max_num_batched_tokens
    assert (step.q_lens >= 1).all()
    assert (step.kv_lens >= step.q_lens).all()
    assert step.kv_lens.max() <= knobs.max_model_len
    assert (step.q_lens[: step.num_decode] == 1).all()
    assert (step.q_lens[step.num_decode :] > 1).all()
    pages = set(itertools.chain.from_iterable(table))
    assert len(pages) <= knobs.num_pages - 1
    assert min(pages) >= 1
    assert max(pages) < knobs.num_pages
    owners: dict[int, list[tuple[int, int]]] = {}
    for i, row in enumerate(table):
        assert len(row) == -(-int(step.kv_lens[i]) // knobs.block_size)
        assert len(set(row)) == len(row)
        for j, page in enumerate(row):
            owners.setdefault(page, []).append((i, j))
    for shared in owners.values():
        if len(shared) > 1:
            assert knobs.enable_prefix_caching
            assert len({j for _, j in shared}) == 1  # at the same place in sequences ...
            end = (shared[0][1] + 1) * knobs.block_size
            for i, _ in shared:
                assert end <= step.kv_lens[i] - step.q_lens[i]  # ... which only read it ...
                assert end <= common_tokens(requests[i], requests[shared[0][0]])


@st.composite
def knobs_and_requests(draw: st.DrawFn) -> tuple[EngineKnobs, list[Request], int | None]:
    block_size = draw(st.sampled_from([1, 4, 16]))
    max_model_len = draw(st.integers(2, 96))
    max_num_seqs = draw(st.integers(1, 6))
    scheduler = draw(st.sampled_from(Scheduler))
    drafts = draw(st.sampled_from([0, 0, 1, 3, 15]))
    chunked = draw(st.booleans())
    is_sglang = scheduler is Scheduler.SGLANG
    least = max_num_seqs * (1 + drafts) if is_sglang else max_num_seqs
    least = least if chunked else max(least, max_model_len)
    pages = -(-max_model_len // block_size)
    knobs = EngineKnobs(
        block_size=block_size,
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=least + draw(st.integers(0, 64)),
        max_model_len=max_model_len,
        num_gpu_blocks=draw(st.none() | st.integers(1 + pages, 1 + 2 * pages)),
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=0 if is_sglang else draw(st.sampled_from([0, 0, 1, 7])),
        enable_prefix_caching=draw(st.booleans()),
        enable_mixed_chunk=is_sglang and draw(st.booleans()),
        num_speculative_tokens=drafts,
        acceptance_rate=draw(st.sampled_from([0.0, 0.5, 1.0])),
        kv_role=draw(st.sampled_from(KvRole)),
        step_time=StepTime(weights_us=1e4),
    )
    requests, at = [], 0.0
    for number in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0.0, 0.004, 0.1]))
        prompt = draw(st.integers(1, max_model_len - 1))
        output = draw(st.integers(1, 40))
        prefix: tuple[tuple[str, int], ...] = ()
        if draw(st.booleans()):
            common = draw(st.sampled_from([5, 16, 33]))
            prefix = (("shared", common), (f"own{number % 3}", common + prompt))
            prefix = prefix[: draw(st.integers(1, 2))]
        cached = draw(st.sampled_from([0, 0, prompt // 2, prompt]))
        requests.append(request(prompt, output, at=at, prefix=prefix, cached_prefix_tokens=cached))
    return knobs, requests, draw(st.none() | st.integers(1, 4))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=knobs_and_requests(), seed=st.integers(0, 3))
def test_every_step_is_a_legal_batch(
    case: tuple[EngineKnobs, list[Request], int | None], seed: int
) -> None:
    knobs, requests, max_concurrency = case
    engine = SimulatedEngine(requests, knobs, max_concurrency=max_concurrency, seed=seed)
    problem = Problem(
        num_q_heads=8,
        num_kv_heads=2,
        head_dim=128,
        page_size=knobs.block_size,
        kv_dtype="float32" if knobs.block_size == 1 else "bfloat16",  # whole words
        max_num_tokens=knobs.max_num_batched_tokens,
        max_num_seqs=knobs.max_num_seqs,
        pages_per_seq=knobs.pages_of(knobs.max_model_len),
        num_pages=knobs.num_pages,
    )
    last_us, num_tokens = -1.0, 0
    for number, step in enumerate(engine.run()):
        assert number < 20_000  # preempted sequences make way for good in the end
        assert_legal(step, knobs, requests_of(engine, step))
        batch = step.batch(block_size=knobs.block_size)
        assert batch.misfit(problem) is None
        arrays = batch.arrays(problem)
        assert arrays.cu_q_lens[step.num_seqs] == step.q_lens.sum()
        assert step.start_us > last_us
        last_us = step.start_us
        num_tokens += int(step.q_lens.sum())
    stats = engine.stats
    assert stats.num_finished == len(requests)
    assert engine._state.pool.num_free == knobs.num_pages - 1  # nothing leaks
    if (
        knobs.kv_role is KvRole.BOTH
        and not knobs.num_speculative_tokens
        and max_concurrency is None
    ):
        # The last token is sampled, never computed; preempted text is computed again.
        due = sum(min(r.prompt_tokens + r.output_tokens, knobs.max_model_len) - 1 for r in requests)
        if not stats.num_preemptions:
            assert num_tokens == due - stats.num_cached_tokens
        else:
            assert num_tokens + stats.num_cached_tokens >= due


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=knobs_and_requests(), seed=st.integers(0, 3))
def test_launches_of_decodes_alone_are_those_that_the_scheduler_would_choose(
    case: tuple[EngineKnobs, list[Request], int | None], seed: int
) -> None:
    """They are found without it (`stretch.py`)."""
    knobs, requests, max_concurrency = case

    def served() -> tuple[list[object], object]:
        engine = SimulatedEngine(requests, knobs, max_concurrency=max_concurrency, seed=seed)
        seen = [
            (s.start_us, lens([s]), s.page_table(knobs.block_size), engine.num_arrived)
            for s in engine.run()
        ]
        return seen, engine.stats

    found = served()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SchedulerState, "only_decodes", lambda self: False)
        assert served() == found


def test_chunked_prefill_fills_what_decodes_leave() -> None:
    knobs = EngineKnobs(block_size=16, max_num_seqs=4, max_num_batched_tokens=10, max_model_len=64)
    _, steps = run([request(4, 4), request(18, 2)], knobs)
    assert lens(steps) == [
        ([4, 6], [4, 6], 0),
        ([1, 9], [5, 15], 1),
        ([1, 3], [6, 18], 1),
        ([1, 1], [7, 19], 2),
    ]


def test_without_chunks_a_prompt_waits_until_it_fits() -> None:
    knobs = EngineKnobs(
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=20,
        max_model_len=20,
        enable_chunked_prefill=False,
    )
    _, steps = run([request(15, 2), request(6, 1)], knobs)
    assert lens(steps) == [([15], [15], 0), ([1, 6], [16, 6], 1)]


def test_long_prompts_are_cut_to_the_threshold() -> None:
    knobs = EngineKnobs(
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=20,
        max_model_len=64,
        long_prefill_token_threshold=8,
    )
    _, steps = run([request(20, 1), request(3, 1)], knobs)
    assert lens(steps)[0] == ([8, 3], [8, 3], 0)
    assert [step.q_lens[0] for step in steps] == [8, 8, 4]


def test_latest_sequence_is_preempted_and_computes_its_text_again() -> None:
    knobs = EngineKnobs(
        block_size=4,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        max_model_len=16,
        num_gpu_blocks=6,
        enable_prefix_caching=False,
    )
    engine, steps = run([request(8, 6), request(8, 4)], knobs)
    # 5 pages: each needs a third one for its second token; only the first gets it.
    assert lens(steps)[:3] == [([8, 8], [8, 8], 0), ([1], [9], 1), ([1], [10], 1)]
    assert engine.stats.num_preemptions == 1
    assert ([9], [9], 0) in lens(steps)  # the prompt and the token it had


def test_resumed_sequence_finds_its_own_pages_in_the_prefix_cache() -> None:
    options = {"block_size": 4, "max_num_seqs": 2, "max_model_len": 16, "num_gpu_blocks": 6}
    requests = [request(8, 2), request(8, 4)]
    cold, _ = run(requests, EngineKnobs(**options, enable_prefix_caching=False))
    warm, _ = run(requests, EngineKnobs(**options, enable_prefix_caching=True))
    assert cold.stats.num_cached_tokens == 0
    assert warm.stats.num_preemptions == cold.stats.num_preemptions == 1
    assert warm.stats.num_cached_tokens > 0


def test_equal_beginnings_share_pages_and_different_ones_do_not() -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=4, max_model_len=64)
    same, other = (("system", 10),), (("another", 10),)
    requests = [
        request(12, 20, prefix=same),
        request(14, 20, at=0.02, prefix=same),
        request(14, 20, at=0.02, prefix=other),
    ]
    engine, steps = run(requests, knobs)
    table = steps[5].page_table(4)
    assert table[0][:2] == table[1][:2]  # 8 of the 10 tokens are whole pages
    assert table[0][2] != table[1][2]
    assert not set(table[2]) & {*table[0], *table[1]}
    assert engine.stats.num_cached_tokens == 8


def test_next_turn_finds_the_answer_of_the_turn_before() -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=4, max_model_len=64)
    first = request(9, 7, prefix=(("turn1", 16),))
    second = request(20, 1, at=5.0, prefix=(("turn1", 16), ("turn2", 21)))
    engine, steps = run([first, second], knobs)
    # 9 + 7 tokens, the last of them sampled but never computed: 15 tokens, 3 whole pages.
    assert engine.stats.num_cached_tokens == 12
    assert lens(steps)[-1] == ([8], [20], 0)


def test_declared_hits_are_skipped_in_whole_pages() -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=4, max_model_len=64)
    _, steps = run([request(12, 1, cached_prefix_tokens=7)], knobs)
    assert lens(steps) == [([8], [12], 0)]


def test_drafts_are_verified_and_never_run_past_the_end() -> None:
    knobs = EngineKnobs(
        block_size=4,
        max_num_seqs=4,
        max_model_len=64,
        num_speculative_tokens=3,
        acceptance_rate=1.0,
    )
    _, steps = run([request(4, 8)], knobs)
    # 1 from the prompt, 4 from a full verification, then 3 are left: one and two drafts.
    assert lens(steps) == [([4], [4], 0), ([4], [8], 0), ([3], [11], 0)]
    none = EngineKnobs(
        block_size=4,
        max_num_seqs=4,
        max_model_len=64,
        num_speculative_tokens=3,
        acceptance_rate=0.0,
    )
    _, steps = run([request(4, 4)], none)
    assert lens(steps) == [([4], [4], 0), ([3], [7], 0), ([2], [7], 0), ([1], [7], 1)]


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (KvRole.PREFILL, [([6], [6], 0)]),
        (KvRole.DECODE, [([1], [6], 1), ([1], [7], 1), ([1], [8], 1)]),
    ],
)
def test_disaggregated_halves(
    role: KvRole, expected: list[tuple[list[int], list[int], int]]
) -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=4, max_model_len=64, kv_role=role)
    _, steps = run([request(6, 3)], knobs)
    assert lens(steps) == expected


def test_sglang_runs_prompts_first_and_apart() -> None:
    options = {"block_size": 4, "max_num_seqs": 4, "max_model_len": 64}
    requests = [request(6, 3), request(5, 2, at=0.005)]
    knobs = EngineKnobs(**options, scheduler=Scheduler.SGLANG)
    _, steps = run(requests, knobs)
    assert lens(steps) == [
        ([6], [6], 0),
        ([5], [5], 0),
        ([1, 1], [7, 6], 2),
        ([1], [8], 1),
    ]
    _, steps = run(
        requests, EngineKnobs(**options, scheduler=Scheduler.SGLANG, enable_mixed_chunk=True)
    )
    assert lens(steps)[1] == ([1, 5], [7, 5], 1)


def test_drafts_never_ask_for_more_pages_than_the_sequence_can_use() -> None:
    knobs = EngineKnobs(
        block_size=1,
        scheduler=Scheduler.SGLANG,
        max_num_seqs=1,
        max_num_batched_tokens=4,
        max_model_len=18,
        num_speculative_tokens=3,
        acceptance_rate=0.0,
        enable_prefix_caching=False,
    )
    engine, steps = run([request(1, 17)], knobs)
    assert engine.stats.num_preemptions == 0
    assert len(steps) == 17
    assert [step.q_lens[0] for step in steps[-4:]] == [4, 3, 2, 1]


def test_received_prompts_join_the_decodes_under_sglang() -> None:
    knobs = EngineKnobs(
        block_size=4,
        scheduler=Scheduler.SGLANG,
        max_num_seqs=4,
        max_model_len=64,
        kv_role=KvRole.DECODE,
    )
    _, steps = run([request(6, 3), request(9, 2, at=0.001)], knobs)
    assert lens(steps)[:2] == [([1], [6], 1), ([1, 1], [9, 7], 2)]


def test_decodes_that_join_a_prompt_launch_are_within_its_budget() -> None:
    knobs = EngineKnobs(
        block_size=4,
        scheduler=Scheduler.SGLANG,
        max_num_seqs=2,
        max_num_batched_tokens=3,
        max_model_len=16,
        enable_mixed_chunk=True,
    )
    _, steps = run([request(3, 9), request(7, 1)], knobs)
    assert lens(steps)[:4] == [
        ([3], [3], 0),
        ([1, 2], [4, 2], 1),
        ([1, 2], [5, 4], 1),
        ([1, 2], [6, 6], 1),
    ]


def test_chunks_of_one_size_can_have_the_prefill_slot() -> None:
    knobs = EngineKnobs(
        block_size=4, max_num_seqs=4, max_model_len=64, long_prefill_token_threshold=8
    )
    _, steps = run([request(3, 9), request(5, 9, at=0.001), request(20, 9, at=0.001)], knobs)
    step = steps[1]
    assert (step.q_lens.tolist(), step.kv_lens.tolist()) == ([1, 5, 8], [4, 5, 8])
    slotted = step.with_prefill_slot(8)
    assert (slotted.q_lens.tolist(), slotted.kv_lens.tolist()) == ([1, 8, 5], [4, 8, 5])
    assert slotted.batch(block_size=4).distribution == (1, 2, 3)
    table = step.page_table(4)
    assert slotted.page_table(4) == (table[0], table[2], table[1])


def test_a_few_new_tokens_can_have_the_decode_slot() -> None:
    knobs = EngineKnobs(
        block_size=4, max_num_seqs=4, max_model_len=64, num_speculative_tokens=3,
        long_prefill_token_threshold=8,
    )  # fmt: skip
    _, steps = run([request(5, 9), request(3, 9, at=0.001), request(20, 9, at=0.001)], knobs)
    step = steps[1]
    assert (step.q_lens.tolist(), step.num_decode) == ([4, 3, 8], 0)
    slotted = step.with_decode_slot(4).with_prefill_slot(8)
    assert slotted.batch(block_size=4).distribution == (2, 3, 3)
    three = step.with_decode_slot(3)
    assert (three.q_lens.tolist(), three.num_decode) == ([3, 4, 8], 1)
    table = step.page_table(4)
    assert three.page_table(4) == (table[1], table[0], table[2])


def test_closed_loop_never_has_more_requests_than_users() -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=16, max_model_len=64)
    _, steps = run([request(6, 9) for _ in range(20)], knobs, max_concurrency=3)
    assert max(step.num_seqs for step in steps) == 3


def test_pages_fragment_by_themselves() -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=8, max_model_len=64, num_gpu_blocks=80)
    random = np.random.default_rng(0)
    requests = [request(int(p), int(o)) for p, o in random.integers(4, 24, (60, 2))]
    _, steps = run(requests, knobs)
    rows = [row for step in steps[40:80] for row in step.page_table(4) if len(row) > 1]
    consecutive = np.mean([np.mean(np.diff(row) == 1) for row in rows])
    assert consecutive < 0.7


def test_same_seed_same_steps_other_seed_other_steps() -> None:
    knobs = EngineKnobs(block_size=4, max_num_seqs=4, max_model_len=64, num_speculative_tokens=3)
    requests = [request(9, 30) for _ in range(5)]
    one, two, other = (lens(run(requests, knobs, seed=seed)[1]) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"max_num_seqs": 4096}, "max_num_batched_tokens=2048 must be at least"),
        ({"num_gpu_blocks": 9}, "num_gpu_blocks=9 must exceed"),
        ({"num_speculative_tokens": 16}, "must be 0 to 15"),
        ({"acceptance_rate": 1.5}, "must be 0 to 1"),
        ({"enable_chunked_prefill": False}, "without chunked prefill"),
        ({"max_model_len": 1}, "max_model_len=1"),
        ({"enable_mixed_chunk": True}, "scheduler=sglang alone"),
        (
            {"scheduler": Scheduler.SGLANG, "long_prefill_token_threshold": 9},
            "scheduler=vllm alone",
        ),
        ({"long_prefill_token_threshold": -1}, "at least 0"),
    ],
)
def test_knobs_with_which_no_engine_starts(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineKnobs(**{"block_size": 16, **fields})


def test_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="request 1: prompt of 64 tokens"):
        SimulatedEngine(
            [request(5, 1), request(64, 1)], EngineKnobs(block_size=4, max_model_len=64)
        )
