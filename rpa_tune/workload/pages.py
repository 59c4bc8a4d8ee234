"""The engine's page pool: who holds which KV cache page, and which pages hold known text.

Works as vLLM v1's block pool does: free pages form a queue, taken from the front and returned to
the back, last page of a sequence first. A returned page keeps its text until it is taken again,
so the queue is also the least-recently-used list of the prefix cache. With requests of different
lengths coming and going, page lists fragment by themselves, as they do in a server.

Source: vLLM v1 design document "Automatic Prefix Caching" (docs/design/prefix_caching.md).
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable

NULL_PAGE = 0  # vLLM keeps page 0 for padding entries of the page table; never handed out


class PagePool:
    """Pages 1 to `num_pages - 1`, with reference counts and a prefix cache.

    Pages that were never used stand at the front of the queue in order, so a number is enough
    for them: a pool costs what is used of it.
    """

    def __init__(self, num_pages: int) -> None:
        """Starts with every page free and in order."""
        self._num_pages = num_pages
        self._next_unused = NULL_PAGE + 1
        self._returned: OrderedDict[int, None] = OrderedDict()
        self._holders: dict[int, int] = {}
        self._text_of: dict[int, Hashable] = {}
        self._page_of: dict[Hashable, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that no sequence holds."""
        return self._num_pages - self._next_unused + len(self._returned)

    def take(self, count: int) -> list[int]:
        """Takes `count` free pages, the longest unused first; their old text is forgotten.

        Raises:
          ValueError: Fewer than `count` pages are free; ask `num_free` first.
        """
        if count > self.num_free:
            raise ValueError(f"{count} pages wanted, {self.num_free} free")
        first = self._next_unused
        self._next_unused = min(first + count, self._num_pages)
        taken = list(range(first, self._next_unused))
        while len(taken) < count:
            page, _ = self._returned.popitem(last=False)
            text = self._text_of.pop(page, None)
            if text is not None:
                del self._page_of[text]
            taken.append(page)
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def cached(self, texts: Iterable[Hashable]) -> list[int]:
        """Pages that hold the longest known beginning of `texts`; not yet held for the caller."""
        pages = []
        for text in texts:
            page = self._page_of.get(text)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_idle(self, pages: list[int]) -> int:
        """How many of `pages` are free now, and so leave the free queue when held."""
        return sum(1 for page in pages if page not in self._holders)

    def hold(self, pages: list[int]) -> None:
        """Adds one holder to pages found by `cached`."""
        for page in pages:
            if page not in self._holders:
                del self._returned[page]
            self._holders[page] = self._holders.get(page, 0) + 1

    def remember(self, page: int, text: Hashable) -> None:
        """Notes what a full page holds; the first page with a text keeps it."""
        if text not in self._page_of and page not in self._text_of:
            self._page_of[text] = page
            self._text_of[page] = text

    def release(self, pages: list[int]) -> None:
        """Gives up one holder of each page, so that the last page is reused first."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._returned[page] = None
