"""Conversations in writing to requests: ShareGPT, LMSYS, WildChat, OpenAI.

Tokens are guessed from characters: no tokenizer is at hand. Only text counts: images, audio, files
and tool calls have no length here, whatever they take in the file. No text is kept.

Source: the published data sets and OpenAI's API reference. ShareGPT (`conversations: [{from,
value}]`), LMSYS-Chat-1M and WildChat (`conversation: [{role, content}]`; WildChat's `timestamp`),
chat completions (`messages: [{role, content}]`, `content` a text, null, or a list of parts).
"""

import functools
import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rpa_tune.workload.columns import MESSAGE_COLUMNS, TIME_NAMES, find_time, plain
from rpa_tune.workload.draft import BadFieldError, Draft, Layout, Path, read_time
from rpa_tune.workload.text_tree import ROOT, TextTree
from rpa_tune.workload.trace_file import Row

CHARS_PER_TOKEN = 4  # guess: English text with a BPE vocabulary of 32,000 to 128,000
ANSWERING = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
TEXT_PARTS = (None, "text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class Message:
    """One message without its text.

    Attributes:
      tokens: Guessed length of its text.
      digest: Of role and text.
      is_answer: Whether the model wrote it.
      row: The message itself, for its time.
    """

    tokens: int
    digest: bytes
    is_answer: bool
    row: Row


def messages_column(row: Row) -> str | None:
    """The column that holds messages, if there is one and it does."""
    return next((name for name in MESSAGE_COLUMNS if isinstance(row.get(name), list)), None)


class MessageReader:
    """Makes requests of rows with messages; rows that begin with the same messages share them."""

    def __init__(self, tree: TextTree, dropped: Counter[str]) -> None:
        """Starts a file.

        Args:
          tree: Takes the texts of all rows.
          dropped: Counts what is left out, by reason.
        """
        self._tree = tree
        self._dropped = dropped
        self.num_other_parts = 0

    def drafts(self, place: str, row: Row, layout: Layout) -> list[Draft]:
        """The requests of one row.

        With a column of output lengths that is the one request whose prompt all messages are.
        Otherwise every answer is a request, whose prompt is all of the conversation before it.

        Raises:
          BadFieldError: A message is no object, or a value is not what it should be.
        """
        column = messages_column(row) or ""
        messages = [self._message(column, entry) for entry in row[column]]
        if layout.output and row.get(layout.output) not in (None, ""):
            return self._one(place, row, layout, messages)
        return self._answers(place, row, layout, messages)

    def _one(self, place: str, row: Row, layout: Layout, messages: list[Message]) -> list[Draft]:
        path = self._path(messages)
        if not path:
            self._dropped["prompt without text"] += 1
            return []
        draft = layout.draft(place, row, prompt=path[-1][1])
        draft.text = path
        return [draft]

    def _answers(
        self, place: str, row: Row, layout: Layout, messages: list[Message]
    ) -> list[Draft]:
        time, is_date = read_time(row, layout.time)
        drafts: list[Draft] = []
        before = None
        path = self._path(messages)
        end = num_texts = 0
        for number, message in enumerate(messages, start=1):
            prompt, end = end, end + message.tokens
            num_texts += message.tokens > 0
            if not message.is_answer:
                continue
            if not prompt or not message.tokens:
                kind = "answer" if prompt else "prompt"
                self._dropped[f"{kind} without text"] += 1
                continue
            said, is_said_date = _time_of(messages[:number])
            if said is not None:
                time, is_date = said, is_said_date
            before = Draft(
                place=f"{place}, message {number}",
                prompt=prompt,
                output=message.tokens,
                time=time,
                is_date=is_date,
                before=before,
                text=path[:num_texts],
            )
            drafts.append(before)
            time = None  # a later turn comes when the one before is answered, or says when
        return drafts

    def _path(self, messages: list[Message]) -> Path:
        """Nodes with their ends; messages without text leave no mark."""
        node, end = ROOT, 0
        path = []
        for message in messages:
            if message.tokens:
                node, end = self._tree.step(node, message.digest), end + message.tokens
                path.append((node, end))
        return tuple(path)

    def _message(self, column: str, entry: object) -> Message:
        if not isinstance(entry, dict):
            raise BadFieldError(
                column, "bad message", f"an object is needed, got {type(entry).__name__}"
            )
        role = str(entry.get("from", entry.get("role")))
        content = next((entry[k] for k in ("value", "content", "text") if k in entry), None)
        text = self._text(content)
        calls = entry.get("tool_calls")
        self.num_other_parts += len(calls) if isinstance(calls, list) else 0
        digest = hashlib.blake2b(f"{role}\0{text}".encode(errors="replace"), digest_size=16)
        return Message(
            math.ceil(len(text) / CHARS_PER_TOKEN), digest.digest(), role in ANSWERING, entry
        )

    def _text(self, content: Any) -> str:
        """The text of a message's content; other parts are counted and left out."""
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            return "".join(map(self._text, content))
        if isinstance(content, dict):
            if content.get("type") in TEXT_PARTS:
                return self._text(content.get("text", content.get("content")))
            if content.get("type") == "tool_result":  # what a tool said, as parts
                return self._text(content.get("content"))
        if content is not None:
            self.num_other_parts += 1
        return ""


def _time_of(messages: list[Message]) -> tuple[float | None, bool]:
    """When the last answer was asked for: its question's own time, else its own.

    WildChat has the time of the answer alone, which is late by the time it took.
    """
    for message in (*(m for m in messages[-2:-1] if not m.is_answer), messages[-1]):
        found = read_time(message.row, _time_column(tuple(message.row)))
        if found[0] is not None:
            return found
    return None, False


@functools.cache
def _time_column(keys: tuple[str, ...]) -> str | None:
    return find_time({plain(key): key for key in keys}, TIME_NAMES)
