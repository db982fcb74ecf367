"""Harmless texts with alarming words, written one by one: data/alarming.

What templates make (`generate.py`) is of few shapes, and a guard learns those. These are of none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources

from aegis_edge.data.generate import five_grams
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record

SOURCE = "alarming"


def _pairs() -> Iterator[tuple[str, str | None]]:
    folder = resources.files("aegis_edge.data").joinpath(SOURCE)
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".txt"):
            yield from ((line, None) for line in file.read_text("utf-8").splitlines())
        elif file.name.endswith(".jsonl"):
            rows = map(json.loads, file.read_text("utf-8").splitlines())
            yield from ((row["prompt"], row["response"]) for row in rows)


def alarming(held_out: Iterable[str] = ()) -> list[Record]:
    """All of them, but for those that share a word 5-gram with a held-out text."""
    banned: set[tuple[str, ...]] = set()
    for text in held_out:
        banned |= five_grams(text)
    return [
        Record(prompt, response, False, None if response is None else False, Categories(), None, SOURCE)
        for prompt, response in _pairs()
        if not five_grams(prompt) & banned
    ]
