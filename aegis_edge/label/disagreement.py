"""The queue of rows that a person should label: JSON lines, one a row.

id, hash             which row; leave them as they are
why                  quorum (too few votes), tie, or majority (some votes were against)
jury_label           null, or the majority's
prompt, prompt_label, response
violated_categories  as the input has them
votes                judge -> {"label", "categories"}, or {"abstained": reason}
human_label          null: fill in "safe" or "unsafe"
human_categories     [] or, where unsafe, names or codes of the taxonomy
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_edge import taxonomy
from aegis_edge.errors import AegisError
from aegis_edge.label.errors import QueueError
from aegis_edge.label.files import read_json_lines, write_json_lines
from aegis_edge.label.rows import LABELS, Label, Row
from aegis_edge.label.votes import Opinion, Outcome, Vote


@dataclass(frozen=True)
class Answer:
    """A line of the queue that a person answered. `line` is its whole JSON object."""

    number: int
    key: tuple[str, str]
    label: Label
    categories: tuple[str, ...]
    violated_categories: str
    line: Mapping[str, Any]


@dataclass(frozen=True)
class Queue:
    """A queue as it was read: the answers, and how many lines have none yet."""

    answers: dict[tuple[str, str], Answer]
    open: int


def entry(row: Row, outcome: Outcome, opinions: Mapping[str, Opinion]) -> dict[str, Any]:
    """The line of a row, not answered yet."""
    return {
        "id": row.id,
        "hash": row.digest,
        "why": outcome.how,
        "jury_label": outcome.label,
        "prompt": row.prompt,
        "prompt_label": row.prompt_label,
        "response": row.response,
        "violated_categories": row.violated_categories,
        "votes": {judge: _vote(opinion) for judge, opinion in opinions.items()},
        "human_label": None,
        "human_categories": [],
    }


def write_queue(path: Path, entries: Iterable[Mapping[str, Any]]) -> int:
    """Write the queue anew, but lose no answer of the one that is there: an answered line stays, also where
    its row would need no answer any more. Returns the number of lines. Raises LabelError."""
    answers = read_queue(path).answers if path.exists() else {}
    lines = {(str(line["id"]), str(line["hash"])): line for line in entries}
    for key, answer in answers.items():
        lines[key] = {**lines.get(key, {}), **answer.line}
    write_json_lines(path, lines.values())
    return len(lines)


def read_queue(path: Path) -> Queue:
    """Read a queue that a person has worked on. Raises QueueError naming file and line."""
    answers: dict[tuple[str, str], Answer] = {}
    still_open = 0
    for number, value in read_json_lines(path):
        try:
            if isinstance(value, AegisError):
                raise QueueError(str(value))
            answer = _answer(number, value)
            if answer is None:
                still_open += 1
            elif answer.key in answers:
                first = answers[answer.key].number
                raise QueueError(f"row {answer.key[0]!r} was answered on line {first} already")
            else:
                answers[answer.key] = answer
        except QueueError as error:
            raise QueueError(f"{path.name}:{number}: {error}", hint=error.hint) from error
    return Queue(answers, still_open)


def _vote(opinion: Opinion) -> dict[str, Any]:
    if isinstance(opinion, Vote):
        return {"label": opinion.label, "categories": list(opinion.categories)}
    return {"abstained": opinion.reason}


def _answer(number: int, value: Any) -> Answer | None:
    """The answer of a line, None where it has none. Raises QueueError."""
    if not isinstance(value, dict) or not all(
        isinstance(value.get(name), str) for name in ("id", "hash", "violated_categories")
    ):
        raise QueueError(
            "a line is an object with the `id`, `hash` and `violated_categories` it was written with"
        )
    if "human_label" not in value:  # a misspelt key must not pass for "not answered yet"
        raise QueueError("`human_label` is missing", hint="write null where there is no answer")
    label, names = value["human_label"], value.get("human_categories")
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise QueueError("`human_categories` is a list of names")
    if label not in (*LABELS, None):
        raise QueueError(f"`human_label` is safe, unsafe or null; found {label!r}")
    if label != "unsafe" and names:
        raise QueueError("`human_categories` are named, but `human_label` is not unsafe")
    categories = []
    for name in names:
        hazard = taxonomy.find(name)
        if hazard is None:
            near = taxonomy.suggest(name)
            raise QueueError(f"{name!r} is no category", hint=f"did you mean {near!r}?" if near else None)
        categories.append(hazard.name)
    if label is None:
        return None
    key = (value["id"], value["hash"])
    return Answer(number, key, label, tuple(categories), value["violated_categories"], value)
