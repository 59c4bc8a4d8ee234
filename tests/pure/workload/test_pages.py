"""The page pool: order, sharing, and the prefix cache that it doubles as."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpa_tune.workload.knobs import EngineKnobs, Scheduler
from rpa_tune.workload.pages import PagePool, PageReuse


def test_pages_come_in_order_and_return_last_first() -> None:
    pool = PagePool(6)
    assert pool.take(3) == [1, 2, 3]  # 0 is the null page
    pool.release([1, 2, 3])
    assert pool.take(5) == [4, 5, 3, 2, 1]
    with pytest.raises(ValueError, match="1 pages wanted, 0 free"):
        pool.take(1)


def test_pages_without_known_text_are_taken_before_pages_that_were_never_used() -> None:
    pool = PagePool(7, PageReuse.UNCACHED_FIRST)
    pages = pool.take(4)
    pool.remember(1, "a")
    pool.release(pages)
    assert pool.num_free == 6
    assert pool.take(6) == [4, 3, 2, 5, 6, 1]
    assert pool.cached(["a"]) == []


def test_sorted_pages_ascend_and_wait_until_the_free_ones_run_out() -> None:
    pool = PagePool(8, PageReuse.LOWEST_FIRST)
    one, two = pool.take(3), pool.take(2)
    pool.remember(3, "a")
    pool.release(two)
    pool.release(one)
    assert pool.take(2) == [6, 7]
    assert pool.take(3) == [1, 2, 4]  # 3 holds known text, 5 follows
    assert pool.cached(["a"]) == [3]
    assert pool.take(2) == [3, 5]
    assert pool.cached(["a"]) == []


def test_each_scheduler_reuses_pages_as_its_engine_does() -> None:
    vllm = EngineKnobs(block_size=16)
    assert vllm.reuse is PageReuse.UNCACHED_FIRST
    assert EngineKnobs(block_size=16, enable_prefix_caching=False).reuse is PageReuse.LEAST_RECENT
    sglang = EngineKnobs(block_size=16, scheduler=Scheduler.SGLANG)
    assert sglang.reuse is PageReuse.LOWEST_FIRST
    told = EngineKnobs(block_size=16, page_reuse=PageReuse.LEAST_RECENT)
    assert told.reuse is PageReuse.LEAST_RECENT


def test_shared_page_is_free_when_its_last_holder_goes() -> None:
    pool = PagePool(3)
    (page,) = pool.take(1)
    pool.remember(page, "text")
    pool.hold(pool.cached(["text"]))
    pool.release([page])
    assert pool.num_free == 1
    pool.release([page])
    assert pool.num_free == 2


def test_text_is_found_until_its_page_is_taken_again() -> None:
    pool = PagePool(4)
    pages = pool.take(2)
    pool.remember(pages[0], "a")
    pool.remember(pages[1], "b")
    pool.release(pages)
    assert pool.cached(["a", "b", "c"]) == pages
    assert pool.cached(["b", "a"]) == pages[::-1]
    assert pool.cached(["c", "a"]) == []
    assert pool.num_idle(pages) == 2
    pool.take(2)  # page 3, then the page of "b": last pages go first
    assert pool.cached(["a", "b"]) == pages[:1]


def test_first_page_with_a_text_keeps_it() -> None:
    pool = PagePool(4)
    one, two = pool.take(2)
    pool.remember(one, "a")
    pool.remember(two, "a")
    pool.remember(one, "b")
    assert pool.cached(["a"]) == [one]
    assert pool.cached(["b"]) == []


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60), st.sampled_from(PageReuse)
)
def test_no_page_has_two_takers_and_none_is_lost(
    moves: list[tuple[int, bool]], reuse: PageReuse
) -> None:
    pool, held = PagePool(12, reuse), []
    for count, release in moves:
        if release and held:
            if count == 3:
                pool.remember(held[0][0], ("text", len(moves)))
            pool.release(held.pop(0))
        elif 0 < count <= pool.num_free:
            held.append(pool.take(count))
        taken = [page for pages in held for page in pages]
        assert len(taken) == len(set(taken))
        assert pool.num_free == 11 - len(taken)
