"""Conversations in writing: which messages make requests, and how long each is."""

from collections import Counter
from typing import Any

import pytest

from rpa_tune.workload.draft import BadFieldError, Draft, Layout
from rpa_tune.workload.messages import MessageReader, messages_column
from rpa_tune.workload.text_tree import TextTree


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TALK = [said("user", "q" * 40), said("assistant", "a" * 18), said("user", "r"), said("model", "bb")]


def read(row: dict[str, Any]) -> tuple[list[Draft], Counter[str], int]:
    reader = MessageReader(TextTree(), dropped := Counter())
    return reader.drafts("t:1", row, Layout.of(row)), dropped, reader.num_other_parts


def test_the_column_is_the_one_that_holds_a_list() -> None:
    assert messages_column({"conversation": "text", "messages": []}) == "messages"
    assert messages_column({"conversations": [], "messages": []}) == "conversations"
    assert messages_column({"messages": "[]"}) is None


def test_every_answer_is_a_request_whose_prompt_is_all_before_it() -> None:
    first, second = read({"messages": TALK})[0]
    # A token for every four characters that are begun.
    assert (first.prompt, first.output) == (10, 5)
    assert (second.prompt, second.output) == (10 + 5 + 1, 1)
    assert (first.before, second.before) == (None, first)
    assert first.place == "t:1, message 2"
    # What is known of the text ends with the answer, which the next turn repeats.
    assert [end for _, end in first.text] == [10, 15]
    assert second.text[:2] == first.text
    assert [end for _, end in second.text] == [10, 15, 16, 17]


def test_equal_texts_of_other_roles_are_other_texts() -> None:
    reader = MessageReader(TextTree(), Counter())
    layout = Layout.of({"messages": []})

    def node(role: str) -> int:
        row = {"messages": [said(role, "hello"), said("assistant", "x")]}
        return reader.drafts("t:1", row, layout)[0].text[0][0]

    assert node("user") == node("user") != node("system")


def test_a_length_makes_one_request_of_all_messages() -> None:
    (draft,), _, _ = read({"messages": TALK, "output_tokens": 30})
    assert (draft.prompt, draft.output, len(draft.text)) == (17, 30, 4)
    drafts, dropped, _ = read({"messages": [said("user", "")], "output_tokens": 30})
    assert (drafts, dropped) == ([], {"prompt without text": 1})
    assert len(read({"messages": TALK, "output_tokens": ""})[0]) == 2  # no length is none


@pytest.mark.parametrize(
    ("content", "tokens", "others"),
    [
        ("abcde", 2, 0),
        ("", 0, 0),
        (None, 0, 0),
        (["abcd", {"type": "text", "text": "efgh"}], 2, 0),
        ({"text": "abcd"}, 1, 0),
        ({"type": "tool_result", "content": [{"type": "text", "text": "abcd"}]}, 1, 0),
        ([{"type": "image_url", "image_url": {"url": "x" * 99}}], 0, 1),
        ([{"type": "text", "text": "abcd"}, {"type": "file"}, 5], 1, 2),
    ],
)
def test_only_text_counts_and_the_rest_is_counted_apart(content, tokens, others) -> None:
    row = {"messages": [said("user", content), said("user", "abcd"), said("assistant", "abcd")]}
    (draft,), _, num_other_parts = read(row)
    assert (draft.prompt, num_other_parts) == (tokens + 1, others)


def test_answers_without_prompt_or_text_are_no_requests_but_part_of_what_follows() -> None:
    talk = [said("assistant", "abcd"), said("user", "efgh"), said("assistant", None), *TALK[2:]]
    drafts, dropped, _ = read({"messages": talk})
    assert [(d.prompt, d.output) for d in drafts] == [(3, 1)]
    assert dropped == {"prompt without text": 1, "answer without text": 1}


def test_later_turns_have_a_time_only_if_they_say_so() -> None:
    timed = [{**m, "timestamp": 100 * i} for i, m in enumerate(TALK)]
    assert [d.time for d in read({"messages": timed})[0]] == [0.0, 200.0]  # those of the questions
    # A row's own time is that of its first turn; the next comes when that is answered.
    assert [d.time for d in read({"messages": TALK, "timestamp": 7})[0]] == [7.0, None]
    answered = [dict(m) for m in TALK]
    answered[3]["timestamp"] = "2023-04-09T00:00:00Z"
    drafts = read({"messages": answered, "timestamp": 7})[0]
    assert [(d.time, d.is_date) for d in drafts] == [(7.0, False), (1680998400.0, True)]


def test_a_message_that_is_no_object_is_a_bad_row() -> None:
    with pytest.raises(BadFieldError, match="an object is needed, got str") as caught:
        read({"conversations": ["hello"]})
    assert (caught.value.column, caught.value.reason) == ("conversations", "bad message")
