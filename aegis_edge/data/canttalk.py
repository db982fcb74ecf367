"""A row of `nvidia/CantTalkAboutThis-Topic-Control-Dataset` (arXiv 2404.03820), as published: one dialogue.

    domain, scenario, system_instruction, conversation, distractors, conversation_with_distractors

What is not obvious about these fields:
  scenario             "2. Comparing ...": numbered within its domain. Several rows may share one
  system_instruction   paragraphs: first what the assistant is there for, then what it should refuse
  conversation         [{"role": "user" or "assistant", "content": text}, ...], all of it on the topic
  distractors          [{"bot turn": text, "distractor": text}, ...]: what a user might say after that turn of
                       the assistant to lead it off the topic. Harmless all the same
  conversation_with_distractors
                       the same texts in order; not read

A user's turn is taken alone, without what was said before it. So a greeting or a thank-you counts as on the
topic, as it does in the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aegis_edge.conversation import Conversation
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import DataError, Record, Topic
from aegis_edge.errors import InputError, PolicyError
from aegis_edge.policy import MAX_NAME, Category

SOURCE = "canttalk"  # of users' turns
DISTRACTORS = "canttalk_distractors"
DESCRIPTION = 400  # characters; the first sentences say what a topic is, the later ones mostly what to refuse
# Fields that no other schema has: one is enough to know a row by.
_OWN = frozenset({"system_instruction", "distractors", "conversation_with_distractors"})
_SENTENCE = re.compile(r"[.!?][\"')\]]*(?= |$)")


@dataclass(frozen=True)
class Dialogue:
    """A topic, the users' turns that are on it, and what leads off it; each text once.

    empty    turns and distractors left out because they have no text
    """

    topic: Topic
    turns: tuple[str, ...]
    distractors: tuple[str, ...]
    empty: int = 0

    def records(self) -> list[Record]:
        """Harmless records, the turns first; `raw_category` is the topic, `source` tells which they are."""
        return [
            Record(text, None, False, None, Categories(), self.topic, source)
            for source, texts in ((SOURCE, self.turns), (DISTRACTORS, self.distractors))
            for text in texts
        ]


def is_dialogue_row(row: Any) -> bool:
    """Whether a JSON value has fields that only this data set has."""
    return isinstance(row, dict) and not _OWN.isdisjoint(row)


def parse_dialogue_row(row: Any) -> Dialogue:
    """Read a row. Raises DataError that names the field, without a place."""
    if not is_dialogue_row(row):
        raise DataError("not a dialogue with `system_instruction` and `distractors`")
    scenario, instruction = _line(row, "scenario"), _line(row, "system_instruction")
    name = _cut(re.sub(r"^\d+[.)]\s*", "", scenario).rstrip(". "), MAX_NAME)
    topic = Topic(name, _description(instruction), domain=_line(row, "domain"))
    turns = [said for role, said in _pairs(row, "conversation", "role", "content") if role == "user"]
    if not any(turns):
        raise DataError("`conversation` has no turn of a user")
    away = [said for _, said in _pairs(row, "distractors", "bot turn", "distractor")]
    try:
        Category(topic.name, description=topic.description, allowed=True)  # a policy must be able to name it
    except PolicyError as error:
        raise DataError(f"`scenario` and `system_instruction` make no topic: {error}") from error
    try:
        for text in (*turns, *away):
            Conversation(text)
    except InputError as error:  # JSON can spell half a character
        raise DataError(str(error)) from error
    said_once, led_once = (tuple(t for t in dict.fromkeys(texts) if t) for texts in (turns, away))
    return Dialogue(topic, said_once, led_once, [*turns, *away].count(""))


def _line(row: dict[str, Any], field: str) -> str:
    """A field's text on one line."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"a dialogue needs a non-empty `{field}`")
    return " ".join(value.split())


def _pairs(row: dict[str, Any], field: str, first: str, second: str) -> Iterator[tuple[str, str]]:
    """Both texts of every object in a list, without the white space around them."""
    entries = row.get(field)
    if not isinstance(entries, list):
        raise DataError(f"`{field}` is a list")
    for entry in entries:
        texts = (entry.get(first), entry.get(second)) if isinstance(entry, dict) else (None, None)
        if not isinstance(texts[0], str) or not isinstance(texts[1], str):
            raise DataError(f"`{field}` holds objects with the texts `{first}` and `{second}`")
        yield texts[0].strip(), texts[1].strip()


def _description(instruction: str) -> str:
    """As many of its first sentences as DESCRIPTION holds; of a longer first one, as many words."""
    if len(instruction) <= DESCRIPTION:
        return instruction
    ends = [found.end() for found in _SENTENCE.finditer(instruction, 0, DESCRIPTION + 1)]
    ends = [end for end in ends if end <= DESCRIPTION]
    return instruction[: ends[-1]] if ends else _cut(instruction, DESCRIPTION)


def _cut(text: str, most: int) -> str:
    """The words at its start that fit in `most` characters."""
    return text if len(text) <= most else text[: most + 1].rpartition(" ")[0] or text[:most]
