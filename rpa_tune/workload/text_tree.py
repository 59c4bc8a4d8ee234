"""Which prompts begin alike: a tree over whatever stands for their text, without the text.

A node stands for everything from the beginning of a prompt to some token; two rows that reach one
node begin with the same tokens. Labels are ids of blocks (`hash_ids`), digests of messages, or
turns of a conversation.
"""

from collections.abc import Hashable, Iterable

ROOT = 0


class TextTree:
    """Nodes, numbered from 1, and how many requests reach each."""

    def __init__(self) -> None:
        """Starts with the empty text."""
        self._nodes: dict[tuple[int, Hashable], int] = {}
        self._uses: list[int] = [0]

    def step(self, node: int, label: Hashable) -> int:
        """The text of `node` continued by what `label` stands for."""
        after = self._nodes.setdefault((node, label), len(self._uses))
        if after == len(self._uses):
            self._uses.append(0)
        return after

    def walk(self, labels: Iterable[Hashable]) -> list[int]:
        """The nodes of a text that is made of `labels`."""
        nodes, node = [], ROOT
        for label in labels:
            node = self.step(node, label)
            nodes.append(node)
        return nodes

    def count(self, path: Iterable[tuple[int, int]]) -> None:
        """Notes that one more request has the text of `path`, (node, end in tokens) pairs."""
        for node, _ in path:
            self._uses[node] += 1

    def shared(self, path: Iterable[tuple[int, int]]) -> tuple[tuple[str, int], ...]:
        """The part of a path that another request has, as `Request.prefix` wants it.

        The rest would never be found in a cache, and long prompts have thousands of blocks.
        """
        return tuple((f"text{node}", end) for node, end in path if self._uses[node] > 1)
