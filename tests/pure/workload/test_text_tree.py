"""Which texts begin alike, held against the beginnings themselves."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_tune.workload.text_tree import ROOT, TextTree

texts = st.lists(st.lists(st.sampled_from("ab"), max_size=5), min_size=1, max_size=8)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(texts=texts)
def test_a_node_is_a_beginning_and_shared_is_what_two_have(texts: list[list[str]]) -> None:
    tree = TextTree()
    paths = [tree.walk(text) for text in texts]
    beginnings = {}
    for text, path in zip(texts, paths, strict=True):
        assert len(path) == len(text)
        for end, node in enumerate(path, 1):
            assert beginnings.setdefault(node, text[:end]) == text[:end]
    assert len(beginnings) == len({tuple(t) for t in beginnings.values()})
    assert ROOT not in beginnings
    with_ends = [[(node, 10 * end) for end, node in enumerate(path, 1)] for path in paths]
    for path in with_ends:
        tree.count(path)
    for index, (text, path) in enumerate(zip(texts, with_ends, strict=True)):
        others = texts[:index] + texts[index + 1 :]
        alike = [end for end in range(1, len(text) + 1)
                 if any(other[:end] == text[:end] for other in others)]  # fmt: skip
        shared = tree.shared(path)
        assert [end for _, end in shared] == [10 * end for end in alike]
        assert [key for key, _ in shared] == [f"text{node}" for node, _ in path[: len(alike)]]


def test_labels_need_not_be_texts() -> None:
    tree = TextTree()
    assert tree.step(ROOT, 1) != tree.step(ROOT, "1")
    assert tree.step(ROOT, (0, "prompt")) == tree.step(ROOT, (0, "prompt"))
