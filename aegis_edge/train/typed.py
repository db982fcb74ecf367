"""The ways people type: case, punctuation, slips and manners say nothing about harm, and must not seem to.

Each public set has a typography of its own, and most sets have one label, so a guard can tell labels by it.
"""

from __future__ import annotations

import random

CHANGED = 0.3  # of the prompts that a step trains on
SLIPS = 0.06  # of a text's words have two letters in the wrong order
BEFORE = (
    "Hi! ",
    "hello, ",
    "Hey. ",
    "Quick question: ",
    "Please help: ",
    "So, ",
    "ok. ",
    "Hi there, I have a question. ",
)
AFTER = (" Thanks!", " pls", " thank you", "...", " ??", " Please be quick.", " :)")


def _slip(word: str, rng: random.Random) -> str:
    if len(word) < 4 or rng.random() >= SLIPS:
        return word
    i = rng.randrange(1, len(word) - 2)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def typed(text: str, rng: random.Random) -> str:
    """The text as somebody else would have typed it: in three of ten draws not letter by letter the same."""
    if rng.random() >= CHANGED:
        return text
    roll = rng.random()
    if roll < 0.4:
        return text.lower()
    if roll < 0.6:
        return text.rstrip("?.! ") or text
    if roll < 0.75:
        return " ".join(_slip(word, rng) for word in text.split(" "))
    if roll < 0.8:
        return text.upper()
    if roll < 0.92:
        return rng.choice(BEFORE) + text
    return text + rng.choice(AFTER)
