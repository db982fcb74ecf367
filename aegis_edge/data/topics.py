"""Everyday topics: what topic-following policies are about, and harmless prompts on each.

topics.toml names each topic and describes it. Prompts are its own texts, and its subjects put into frames
that all topics share, so that the subject alone tells the topic. Held-out topics are never trained on: they
measure topic following.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from aegis_edge.data.generate import vary
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record, Topic

SOURCE = "topics"  # the `source` of these records; their `raw_category` is the topic's name
_TEXT = tomllib.loads(resources.files("aegis_edge.data").joinpath("topics.toml").read_text("utf-8"))
FRAMES: list[str] = _TEXT["frames"]


def _topic(entry: dict[str, Any]) -> Topic:
    return Topic(entry["name"], entry["description"], tuple(entry["subjects"]), tuple(entry.get("texts", ())))


TOPICS: tuple[Topic, ...] = tuple(_topic(entry) for entry in _TEXT["topics"])
HELD_OUT: tuple[Topic, ...] = tuple(_topic(entry) for entry in _TEXT["held_out"])


def topical(topics: Sequence[Topic], each: int, seed: int = 0) -> list[Record]:
    """Up to `each` distinct prompts a topic, as harmless records."""
    out = []
    for topic in topics:
        rng = random.Random(f"{seed}/{topic.name}")
        framed = [frame.replace("{x}", subject) for frame in FRAMES for subject in topic.subjects]
        rng.shuffle(framed)
        texts = dict.fromkeys(vary(text, rng) for text in [*topic.texts, *framed][:each])
        out += [Record(text, None, False, None, Categories(), topic.name, SOURCE) for text in texts]
    return out
