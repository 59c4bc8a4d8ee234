"""The engine's page pool: who holds which KV cache page, and which pages hold known text.

Free pages form a queue, taken from the front; a returned page keeps its text until it is taken
again, so the queue is also the least-recently-used list of the prefix cache. Engines differ in
where a returned page goes (`PageReuse`), and that decides how many neighbours in a page table are
neighbours in memory. With requests of different lengths coming and going, page lists fragment by
themselves, as they do in a server.

Sources: vLLM v1, docs/design/prefix_caching.md and v1/core/block_pool.py (`free_blocks`);
sglang-jax, srt/mem_cache/allocator.py (`PagedTokenToKVPoolAllocator`).
"""

import enum
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable

NULL_PAGE = 0  # vLLM keeps page 0 for padding entries of the page table; never handed out


class PageReuse(enum.StrEnum):
    """Where pages go that a sequence gives up, and so which are taken next."""

    # vLLM: all to the back, the last page of a sequence first.
    LEAST_RECENT = "least_recent"
    # vLLM since its pool tells them apart: pages without known text go to the front, those with it
    # to the back; each the last page of a sequence first.
    UNCACHED_FIRST = "uncached_first"
    # SGLang: pages without known text wait until the free ones run out; then all are sorted. Pages
    # with known text follow when even these are too few, the least recently used first.
    LOWEST_FIRST = "lowest_first"


class PagePool:
    """Pages 1 to `num_pages - 1`, with reference counts and a prefix cache.

    Pages that were never used stand in order, so a number is enough for them: a pool costs what is
    used of it.
    """

    def __init__(self, num_pages: int, reuse: PageReuse = PageReuse.LEAST_RECENT) -> None:
        """Starts with every page free and in order."""
        self._num_pages = num_pages
        self._reuse = reuse
        # In the order in which they are taken: front, never used, returned. Aside are those that
        # wait to be sorted into the front.
        self._front: deque[int] = deque()
        self._next_unused = NULL_PAGE + 1
        self._returned: OrderedDict[int, None] = OrderedDict()
        self._aside: list[int] = []
        self._holders: dict[int, int] = {}
        self._text_of: dict[int, Hashable] = {}
        self._page_of: dict[Hashable, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that no sequence holds."""
        unused = self._num_pages - self._next_unused
        return len(self._front) + unused + len(self._returned) + len(self._aside)

    def take(self, count: int) -> list[int]:
        """Takes `count` free pages from the front of the queue; their old text is forgotten.

        Raises:
          ValueError: Fewer than `count` pages are free; ask `num_free` first.
        """
        if count > self.num_free:
            raise ValueError(f"{count} pages wanted, {self.num_free} free")
        at_hand = len(self._front) + self._num_pages - self._next_unused
        if self._reuse is PageReuse.LOWEST_FIRST and count > at_hand:
            self._sort(count)
        taken = [self._front.popleft() for _ in range(min(count, len(self._front)))]
        first = self._next_unused
        self._next_unused = min(first + count - len(taken), self._num_pages)
        taken += range(first, self._next_unused)
        while len(taken) < count:
            taken.append(self._forget_oldest())
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def _forget_oldest(self) -> int:
        page, _ = self._returned.popitem(last=False)
        text = self._text_of.pop(page, None)
        if text is not None:
            del self._page_of[text]
        return page

    def _sort(self, count: int) -> None:
        """Sorts all pages without known text, and as many with it as `count` needs."""
        pages = [*self._front, *range(self._next_unused, self._num_pages), *self._aside]
        self._next_unused = self._num_pages
        self._aside = []
        while len(pages) < count:
            pages.append(self._forget_oldest())
        self._front = deque(sorted(pages))

    def cached(self, texts: Iterable[Hashable]) -> list[int]:
        """Pages that hold the longest known beginning of `texts`; not yet held for the caller."""
        pages: list[int] = []
        for page in map(self._page_of.get, texts):
            if page is None:
                break
            pages.append(page)
        return pages

    def num_idle(self, pages: list[int]) -> int:
        """How many of `pages` are free now, and so leave the free queue when held."""
        return len(pages) - sum(map(self._holders.__contains__, pages))

    def hold(self, pages: list[int]) -> None:
        """Adds one holder to pages found by `cached`."""
        holders = self._holders
        for page in pages:
            count = holders.get(page, 0)
            if not count:
                del self._returned[page]
            holders[page] = count + 1

    def remember(self, page: int, text: Hashable) -> None:
        """Notes what a full page holds; the first page with a text keeps it."""
        if text not in self._page_of and page not in self._text_of:
            self._page_of[text] = page
            self._text_of[page] = text

    def release(self, pages: list[int]) -> None:
        """Gives up one holder of each page; those without another are free, the last page first."""
        uncached = []
        holders = self._holders
        for page in reversed(pages):
            count = holders[page] - 1
            if count:
                holders[page] = count
            else:
                del holders[page]
                if page in self._text_of or self._reuse is PageReuse.LEAST_RECENT:
                    self._returned[page] = None
                else:
                    uncached.append(page)
        if self._reuse is PageReuse.LOWEST_FIRST:
            self._aside += uncached
        else:
            self._front.extendleft(reversed(uncached))
