"""Harmless prompts that look alarming, and everyday ones: what a guard must let through.

A small guard learns the words `kill`, `shoot`, `steal` as harm unless it has seen them harmless about as
often, and the names of groups of people likewise. The templates of harmless.toml and people.toml have slots
in braces, filled from their lists of words; `generate` draws without repeating itself. Every text is the
project's own and harmless.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

_HARMLESS, _PEOPLE = (
    tomllib.loads(resources.files("aegis_edge.data").joinpath(name).read_text("utf-8"))
    for name in ("harmless.toml", "people.toml")
)
WORDS: dict[str, list[str]] = _HARMLESS["words"] | _PEOPLE["words"]
TEMPLATES: dict[str, list[str]] = _HARMLESS["templates"]
PEOPLE: dict[str, list[str]] = _PEOPLE["templates"]
CONTRASTS: dict[str, list[str]] = _HARMLESS["contrasts"]
# Kinds whose harmless form is one word away from a harmful one get a third: more taught the guard to let
# that pass.
DELICATE = ("groups", "history", "privacy")

_SLOT = re.compile(r"\{(a )?(\w+)\}")


def _fill(template: str, rng: random.Random) -> str:
    def word(match: re.Match[str]) -> str:
        choice = rng.choice(WORDS[match.group(2)])
        if not match.group(1) or choice.split()[0] in ("a", "an", "some", "the"):
            return choice
        return f"{'an' if choice[0].lower() in 'aeiou' else 'a'} {choice}"

    text = _SLOT.sub(word, template)
    return text[0].upper() + text[1:] if template[0] == "{" else text


def vary(text: str, rng: random.Random) -> str:
    """The ways people type: no capitals, no question mark, a polite frame."""
    roll = rng.random()
    if roll < 0.15:
        return text.lower()
    if roll < 0.22:
        return text.rstrip("?.!")
    if roll < 0.28:
        return f"Please help: {text}"
    if roll < 0.32:
        return f"{text} Thanks!"
    return text


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def five_grams(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams, or the whole text where it is shorter."""
    w = words(text)
    return {tuple(w[i : i + 5]) for i in range(len(w) - 4)} or {tuple(w)}


def generate(
    count: int,
    seed: int = 0,
    held_out: Iterable[str] = (),
    templates: Mapping[str, Sequence[str]] = TEMPLATES,
) -> list[tuple[str, str]]:
    """Up to `count` distinct (kind, prompt) pairs, kinds in equal shares (the DELICATE ones a third) as far
    as templates carry.

    A prompt that equals a held-out text or shares a word 5-gram with one is left out.
    """
    rng = random.Random(seed)
    banned: set[tuple[str, ...]] = set()
    for text in held_out:
        banned |= five_grams(text)
    kinds = [kind for kind in sorted(templates) for _ in range(1 if kind in DELICATE else 3)]
    seen: set[str] = set()
    out: list[tuple[str, str]] = []
    for attempt in range(count * 6):
        if len(out) == count:
            break
        kind = kinds[attempt % len(kinds)]
        text = vary(_fill(rng.choice(templates[kind]), rng), rng)
        key = " ".join(words(text))
        if key in seen or five_grams(text) & banned:
            continue
        seen.add(key)
        out.append((kind, text))
    return out
