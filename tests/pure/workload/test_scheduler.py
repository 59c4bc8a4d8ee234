"""The two policies, launch by launch, on queues that a test fills; `test_engine.py` has runs."""

from collections.abc import Sequence as Many

import pytest

from rpa_tune.workload.knobs import EngineKnobs, Scheduler
from rpa_tune.workload.request import Request
from rpa_tune.workload.scheduler import Chosen, EngineSequence, SchedulerState


def make_state(**knobs) -> SchedulerState:
    fields = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 32}
    return SchedulerState(EngineKnobs(**{**fields, **knobs}))


def wait(state: SchedulerState, *prompts: int, output: int = 8, prefix=()) -> list[EngineSequence]:
    first = len(state.waiting) + len(state.running)
    made = [
        EngineSequence(
            request=Request(arrival_s=0.0, prompt_tokens=p, output_tokens=output, prefix=prefix),
            number=first + i, goal=p + output, known=p,
        )
        for i, p in enumerate(prompts)
    ]  # fmt: skip
    state.waiting.extend(made)
    return made


def launch(state: SchedulerState) -> list[tuple[int, int]]:
    """(number, new tokens) of a launch, after which its sequences are one step further."""
    chosen = state.schedule()
    advance(state, chosen)
    return [(sequence.number, tokens) for sequence, tokens in chosen]


def advance(state: SchedulerState, chosen: Chosen) -> None:
    for sequence, tokens in chosen:
        sequence.computed += tokens
        assert sequence.computed <= len(sequence.pages) * state.knobs.block_size
        if sequence.computed == sequence.known:
            sequence.known += 1
        state.remember(sequence)


def pages(sequences: Many[EngineSequence]) -> list[int]:
    return [len(sequence.pages) for sequence in sequences]


def test_vllm_runs_decodes_first_and_fills_up_with_chunks() -> None:
    state = make_state()
    wait(state, 5, 30)
    assert launch(state) == [(0, 5), (1, 11)]
    assert launch(state) == [(0, 1), (1, 15)]
    wait(state, 3)
    assert launch(state) == [(0, 1), (1, 4), (2, 3)]
    assert launch(state) == [(0, 1), (1, 1), (2, 1)]


def test_sglang_runs_prompts_alone_and_one_chunk_at_a_time() -> None:
    state = make_state(scheduler=Scheduler.SGLANG)
    wait(state, 5, 20)
    assert launch(state) == [(0, 5), (1, 11)]
    wait(state, 3)
    assert launch(state) == [(1, 9), (2, 3)]
    assert launch(state) == [(0, 1), (1, 1), (2, 1)]


def test_mixed_chunks_leave_room_for_the_decodes() -> None:
    state = make_state(scheduler=Scheduler.SGLANG, enable_mixed_chunk=True)
    wait(state, 5, 25)
    assert launch(state) == [(0, 5), (1, 11)]
    assert launch(state) == [(1, 14), (0, 1)]  # 16 tokens less one for the decode, 14 are left


def test_vllm_preempts_the_latest_which_goes_to_the_head_of_the_queue() -> None:
    # Nine pages of four tokens: those of three prompts.
    state = make_state(
        num_gpu_blocks=10, max_num_batched_tokens=64, enable_prefix_caching=False
    )  # fmt: skip
    one, two, three = wait(state, 12, 12, 12)
    assert launch(state) == [(0, 12), (1, 12), (2, 12)]
    assert pages([one, two, three]) == [3, 3, 3]
    last = wait(state, 4)
    # The first decode needs a fourth page; the third gives up three, of which the second takes one.
    assert launch(state) == [(0, 1), (1, 1)]
    assert list(state.waiting) == [three, *last]
    assert (three.computed, three.pages, three.num_preempted) == (0, [], 1)
    assert (state.num_preemptions, pages([one, two])) == (1, [4, 4])
    assert three.known == 13  # its text is kept, and computed again


def test_sglang_retracts_the_decode_with_the_least_output() -> None:
    state = make_state(scheduler=Scheduler.SGLANG, num_gpu_blocks=9, enable_prefix_caching=False)
    (one,) = wait(state, 12)
    launch(state)
    launch(state)
    (two,) = wait(state, 15)
    launch(state)
    # One has four pages and 14 tokens, two has four and 15: the pool is empty.
    assert (pages([one, two]), state.pool.num_free) == ([4, 4], 0)
    launch(state)
    assert launch(state) == [(0, 1)]
    assert (state.running, list(state.waiting), state.num_preemptions) == ([one], [two], 1)


def test_pages_of_a_finished_sequence_are_free_again() -> None:
    state = make_state()
    (one,) = wait(state, 9)
    free = state.pool.num_free
    launch(state)
    assert state.pool.num_free == free - 3
    state.finish(one)
    assert (state.pool.num_free, state.running) == (free, [])
    assert state.schedule() == []


def test_a_text_is_named_by_its_beginning_as_far_as_that_is_known() -> None:
    prefix = (("system", 6), ("turn", 16))
    one, two = wait(make_state(), 20, 20, prefix=prefix)
    texts = list(one.texts(0, 5, 4))
    assert [a == b for a, b in zip(texts, two.texts(0, 5, 4), strict=True)] == [True] * 4 + [False]
    assert [next(one.texts(i, i + 1, 4)) for i in range(5)] == texts
    # A page that begins in a part and ends behind it is the next part's.
    assert texts[0] == ("system", 0)
    assert texts[1] == ("turn", 1)
    assert texts[4] == (one.number, 4)


@pytest.mark.parametrize(("caching", "tokens"), [(True, 4), (False, 20)])
def test_a_known_beginning_is_not_computed_again(caching: bool, tokens: int) -> None:
    state = make_state(max_num_batched_tokens=64, enable_prefix_caching=caching)
    one, _ = wait(state, 20, 20, prefix=(("system", 16),))
    second = state.waiting.pop()
    launch(state)
    state.waiting.append(second)
    assert launch(state) == [(0, 1), (1, tokens)]
    assert (second.pages[:4] == one.pages[:4]) == caching
    assert state.num_cached_tokens == (16 if caching else 0)


def test_a_whole_prompt_in_the_cache_leaves_one_page_to_compute() -> None:
    """The last token has to be computed for its logits."""
    state = make_state()
    wait(state, 16, prefix=(("system", 16),))
    launch(state)
    wait(state, 16, prefix=(("system", 16),))
    assert launch(state) == [(0, 1), (1, 4)]
