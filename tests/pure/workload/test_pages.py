"""The page pool: order, sharing, and the prefix cache that it doubles as."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpa_tune.workload.pages import PagePool


def test_pages_come_in_order_and_return_last_first() -> None:
    pool = PagePool(6)
    assert pool.take(3) == [1, 2, 3]  # 0 is the null page
    pool.release([1, 2, 3])
    assert pool.take(5) == [4, 5, 3, 2, 1]
    with pytest.raises(ValueError, match="1 pages wanted, 0 free"):
        pool.take(1)


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


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60))
def test_no_page_has_two_takers_and_none_is_lost(moves: list[tuple[int, bool]]) -> None:
    pool, held = PagePool(12), []
    for count, release in moves:
        if release and held:
            pool.release(held.pop(0))
        elif count <= pool.num_free:
            held.append(pool.take(count))
        taken = [page for pages in held for page in pages]
        assert len(taken) == len(set(taken))
        assert pool.num_free == 11 - len(taken)
