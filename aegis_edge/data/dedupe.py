"""Near-duplicates of held-out texts, found so that training never sees what it is evaluated on.

Two texts are compared as words: NFKC, lower case, without punctuation. A text duplicates a held-out one
  exactly  where all words are the same, in order
  nearly   where it holds at least `threshold` of the held-out text's distinct word 5-grams

The second is containment, |A ∩ H| / |H|, and not Jaccard's |A ∩ H| / |A ∪ H|: a long prompt that quotes a
held-out question is a leak, however much stands around it. A text of fewer than 5 words has no 5-gram; it
matches exactly or not at all.

Found exactly and not by sketches (MinHash), in time about linear in the words: a text that holds
k = ceil(threshold |H|) of H's grams holds at least one of any |H| - k + 1 of them, so only that many of each
held-out text go into the index, the rarest first (prefix filtering: Chaudhuri, Ganti and Kaushik, ICDE 2006).
Only texts that share a rare gram are ever compared, and the first match ends the search.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Literal

GRAM = 5  # words
THRESHOLD = 0.5

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Match:
    """`of`: index of the held-out text; `overlap`: share of its 5-grams that the other text holds."""

    of: int
    kind: Literal["exact", "near"]
    overlap: float


def words(text: str) -> tuple[str, ...]:
    """The words that texts are compared by."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def grams(text: Sequence[str]) -> dict[int, None]:
    """Hashes of the distinct word 5-grams, in the text's order (so that a search finds the same match every
    time); the hashes hold within one process only."""
    return dict.fromkeys(hash(tuple(text[i : i + GRAM])) for i in range(len(text) - GRAM + 1))


class HeldOut:
    """Held-out texts, indexed. `compared` counts the pairs of texts compared so far: a measure of work."""

    def __init__(self, texts: Iterable[str], threshold: float = THRESHOLD) -> None:
        """`threshold` in (0, 1]. Raises ValueError for others."""
        if not 0 < threshold <= 1:
            raise ValueError(f"a threshold is in (0, 1], not {threshold}")
        self.compared = 0
        self._threshold = threshold
        self._exact: dict[tuple[str, ...], int] = {}
        self._grams: dict[int, dict[int, None]] = {}
        for index, text in enumerate(texts):
            key = words(text)
            # Without a word (only signs) there is nothing to know a text by but the text itself.
            if self._exact.setdefault(key or (text,), index) == index and len(key) >= GRAM:
                self._grams[index] = grams(key)
        frequency = Counter(gram for held in self._grams.values() for gram in held)
        self._index: defaultdict[int, list[int]] = defaultdict(list)
        for index, held in self._grams.items():
            rarest = sorted(held, key=lambda gram: frequency[gram])
            for gram in rarest[: len(held) - self._needed(held) + 1]:
                self._index[gram].append(index)

    def match(self, text: str) -> Match | None:
        """A held-out text that `text` duplicates, or None."""
        key = words(text)
        exact = self._exact.get(key or (text,))
        if exact is not None:
            return Match(exact, "exact", 1.0)
        found = grams(key)
        seen: set[int] = set()
        for gram in found:
            for index in self._index.get(gram, ()):
                if index in seen:
                    continue
                seen.add(index)
                held = self._grams[index]
                self.compared += 1
                shared = len(held.keys() & found.keys())
                if shared >= self._needed(held):
                    return Match(index, "near", shared / len(held))
        return None

    def _needed(self, held: Sized) -> int:
        # Less a hair: 0.7 * 10 is 7.000000000000001 in floating point and must not ask for 8.
        return max(1, math.ceil(self._threshold * len(held) - 1e-9))


def repeats(texts: Iterable[Sequence[str]]) -> list[int | None]:
    """For each conversation (its turns' texts), the index of the first one with the same words, or None."""
    first: dict[tuple[tuple[str, ...], ...], int] = {}
    found: list[int | None] = []
    for index, turns in enumerate(texts):
        earlier = first.setdefault(tuple(words(turn) or (turn,) for turn in turns), index)
        found.append(None if earlier == index else earlier)
    return found
