"""Launches of decodes alone: what changes in them, in the order in which a scheduler would do it.

`test_engine.py` holds whole runs against those that ask the scheduler for every launch.
"""

from rpa_tune.workload.knobs import EngineKnobs
from rpa_tune.workload.request import Request
from rpa_tune.workload.scheduler import EngineSequence, SchedulerState
from rpa_tune.workload.stretch import DecodeStretch

KNOBS = EngineKnobs(block_size=4, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=32)


def decoding(num_gpu_blocks: int | None = None, **knobs) -> SchedulerState:
    """Two sequences whose prompts of 3 and 6 tokens are computed; 2 and 20 tokens to come."""
    fields = {name: getattr(KNOBS, name) for name in EngineKnobs.__dataclass_fields__}
    state = SchedulerState(EngineKnobs(**fields | {"num_gpu_blocks": num_gpu_blocks} | knobs))
    for number, (prompt, output) in enumerate([(3, 2), (6, 20)]):
        request = Request(arrival_s=0.0, prompt_tokens=prompt, output_tokens=output)
        state.waiting.append(
            EngineSequence(request=request, number=number, goal=prompt + output, known=prompt)
        )
    for sequence, tokens in state.schedule():
        sequence.computed += tokens
        sequence.known += 1
    return state


def test_lengths_grow_and_pages_are_taken_when_they_are_full() -> None:
    state = decoding()
    one, two = state.running
    stretch = DecodeStretch(state)
    assert stretch.grow()
    assert (stretch.q_lens.tolist(), stretch.kv_lens.tolist()) == ([1, 1], [4, 7])
    assert stretch.context_tokens == 11
    assert [len(pages) for pages in stretch.page_lists] == [1, 2]
    done: list[EngineSequence] = []

    def finish(sequence: EngineSequence) -> None:
        done.append(sequence)
        state.finish(sequence)

    stretch.advance(finish)
    assert done == [one]  # its second token is the last
    assert (one.computed, one.known) == (4, 5)
    assert (stretch.kv_lens.tolist(), stretch.context_tokens) == ([8], 8)
    assert stretch.grow()
    stretch.advance(finish)
    assert stretch.grow()
    assert len(two.pages) == 3  # the ninth token
    stretch.advance(finish)
    assert two.computed == 8  # its last full page; brought up to date when the row ends
    stretch.end()
    assert (two.computed, two.known, stretch.num_launches) == (9, 10, 3)


def test_the_row_ends_where_pages_are_too_few() -> None:
    state = decoding(num_gpu_blocks=9)
    state.pool.take(state.pool.num_free)
    stretch = DecodeStretch(state)
    assert stretch.grow()  # both have room for a token
    stretch.advance(state.finish)
    assert stretch.grow()
    stretch.advance(state.finish)  # the pages of the first are free again
    state.pool.take(state.pool.num_free)
    assert not stretch.grow()


def test_only_sequences_past_their_prompts_are_decodes() -> None:
    state = decoding()
    assert state.only_decodes()
    state.running[0].text_end = 5
    assert not state.only_decodes()
    assert not SchedulerState(KNOBS).only_decodes()
    drafting = decoding(num_speculative_tokens=1)
    assert not drafting.only_decodes()
    waiting = decoding()
    waiting.waiting.append(waiting.running[0])
    assert waiting.may_admit()
    assert not waiting.only_decodes()
