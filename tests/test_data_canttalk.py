"""Dialogues of CantTalkAboutThis: what is read of a row, what is refused, what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_edge.data.canttalk import DESCRIPTION, DISTRACTORS, SOURCE, Dialogue, parse_dialogue_row
from aegis_edge.data.files import Tally, holds_dialogues, read_dialogues, read_file
from aegis_edge.data.records import DataError
from aegis_edge.policy import MAX_NAME, Category

INSTRUCTION = (
    "Your role is to help with bread.\n\nYou may talk about flour (e.g. rye) and ovens. Refuse the rest!"
)


def row(**changed: Any) -> dict[str, Any]:
    """A row with all of the published fields."""
    conversation = [
        {"role": "user", "content": "How long does the dough rest?"},
        {"role": "assistant", "content": "An hour."},
        {"role": "user", "content": " And how hot is the oven? "},
        {"role": "assistant", "content": "230 degrees."},
    ]
    distractors = [{"bot turn": "An hour.", "distractor": "An hour is long. Which film should I watch?"}]
    return {
        "domain": "baking",
        "scenario": "12. Baking a first loaf of bread.",
        "system_instruction": INSTRUCTION,
        "conversation": conversation,
        "distractors": distractors,
        "conversation_with_distractors": [[*conversation[:2], {"role": "user", "content": "..."}]],
    } | changed


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_row_is_a_topic_with_turns_and_distractors(tmp_path: Path) -> None:
    tally = Tally("x")
    (found,) = read_dialogues(write(tmp_path / "x.jsonl", [row()]), tally=tally)
    assert found.topic.name == "Baking a first loaf of bread" and found.topic.domain == "baking"
    assert found.topic.description == " ".join(INSTRUCTION.split())
    assert found.turns == ("How long does the dough rest?", "And how hot is the oven?")
    assert found.distractors == ("An hour is long. Which film should I watch?",)
    records = found.records()
    assert [r.source for r in records] == [SOURCE, SOURCE, DISTRACTORS]
    assert all(r.raw_category == found.topic and r.unsafe is False and r.response is None for r in records)
    assert (tally.rows, tally.records, tally.turns, tally.distractors, tally.empty_turns) == (1, 1, 2, 1, 0)


def test_repeated_and_empty_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    said = [{"role": "user", "content": text} for text in ("Hello", "  ", "Hello")]
    away = [{"bot turn": "", "distractor": text} for text in ("", "Nice weather")]
    tally = Tally("x")
    path = write(tmp_path / "x.jsonl", [row(conversation=said, distractors=away)])
    (found,) = read_dialogues(path, tally=tally)
    assert (found.turns, found.distractors) == (("Hello",), ("Nice weather",))
    assert (tally.turns, tally.distractors, tally.empty_turns) == (1, 1, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scenario": None}, "non-empty `scenario`"),
        ({"scenario": "3. "}, "make no topic: name: is empty"),
        ({"scenario": "2. Privacy"}, "make no topic: .* is a hazard"),
        ({"domain": " "}, "non-empty `domain`"),
        ({"system_instruction": ["a"]}, "non-empty `system_instruction`"),
        ({"system_instruction": "a \x07 b"}, "control character"),
        ({"conversation": "Hello"}, "`conversation` is a list"),
        ({"conversation": [{"role": "user"}]}, "texts `role` and `content`"),
        ({"conversation": [{"role": "assistant", "content": "Hello"}]}, "no turn of a user"),
        ({"conversation": [{"role": "user", "content": "half \ud800"}]}, "not valid Unicode"),
        ({"distractors": None}, "`distractors` is a list"),
        ({"distractors": ["Hello"]}, "texts `bot turn` and `distractor`"),
    ],
)
def test_a_malformed_row_is_named_or_skipped(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.jsonl", [row(), row(**changed)])
    with pytest.raises(DataError, match=rf"x\.jsonl: line 2: .*({message})") as caught:
        list(read_dialogues(path))
    assert caught.value.hint is not None and "--skip-bad" in caught.value.hint
    tally = Tally("x")
    assert len(list(read_dialogues(path, skip_bad=True, tally=tally))) == 1
    assert (tally.rows, tally.records) == (2, 1) and tally.unreadable[0].startswith("x.jsonl: line 2: ")


def test_files_of_records_and_of_dialogues_are_told_apart(tmp_path: Path) -> None:
    dialogues = write(tmp_path / "a.jsonl", [row()])
    dialogues.write_text("not JSON\n" + dialogues.read_text())
    records = write(tmp_path / "b.jsonl", [{"prompt": "a", "prompt_label": "safe"}])
    aegis = write(tmp_path / "c.jsonl", [{"prompt": "a", "violated_categories": ""}])
    empty = write(tmp_path / "d.jsonl", [])
    assert [holds_dialogues(f) for f in (dialogues, records, aegis, empty)] == [True, False, False, False]
    with pytest.raises(DataError, match=r"b\.jsonl: line 1: not a dialogue"):
        list(read_dialogues(records))
    with pytest.raises(DataError, match=r"e\.jsonl: line 1: a dialogue about a topic, not a record"):
        list(read_file(write(tmp_path / "e.jsonl", [row()])))


@given(st.lists(st.text("abc .!?", min_size=1, max_size=300), min_size=1, max_size=6))
def test_names_and_descriptions_fit_a_policy(parts: list[str]) -> None:
    text = "x" + "\n".join(parts)
    topic = parse_dialogue_row(row(scenario="1. " + text, system_instruction=text)).topic
    Category(topic.name, description=topic.description, allowed=True)
    assert len(topic.name) <= MAX_NAME and len(topic.description) <= DESCRIPTION
    folded = " ".join(text.split())
    assert folded.startswith(topic.name) and folded.startswith(topic.description)
    if topic.description != folded and any(s in folded[: DESCRIPTION - 1] for s in (". ", "! ", "? ")):
        assert topic.description[-1] in ".!?"


def test_a_description_ends_with_a_sentence_where_it_can() -> None:
    def of(text: str) -> str:
        return parse_dialogue_row(row(system_instruction=text)).topic.description

    first, second = "A" * 200 + ".", "B" * 300 + "."
    assert of(f"{first} {second}") == first
    assert of(f"{first} {second[:190]}. {second}") == f"{first} {second[:190]}."
    assert of("word " * 200) == ("word " * 80).strip()
    assert of("w" * 500) == "w" * DESCRIPTION


def test_two_dialogues_may_share_a_scenario(tmp_path: Path) -> None:
    found: list[Dialogue] = list(read_dialogues(write(tmp_path / "x.jsonl", [row(), row(domain="other")])))
    assert found[0].topic.name == found[1].topic.name and found[0].topic != found[1].topic
