"""Longer texts, made from short ones: without them length itself becomes a sign of harm, or hides it.

joined       two to five prompts one after another: harmless ones, and as many with one harmful part
threads      two to eight texts of one source and label, as in a thread of comments or a list of requests
buried       a prompt between the sentences of harmless prose, harmful in every second text
transcripts  a prompt and its answer as one text, as in a log that is pasted whole
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record

PART = 400  # characters; what is longer is long already
SEPARATORS = (" ", "\n", "\n\n", "\n- ")
SPEAKERS = (("", ""), ("User: ", "Assistant: "), ("Human: ", "AI: "), ("Q: ", "A: "), ("Me: ", "Bot: "))


def _weights(records: Sequence[Record]) -> list[float]:
    """Running sums by which to draw: a hazard's texts together weigh the root of their number, so that the
    rare hazards are not all but missing from long texts.
    """
    counts = Counter(code for r in records for code in r.categories.certain)
    rarest = (min((counts[code] for code in r.categories.certain), default=len(records)) for r in records)
    return list(accumulate(count**-0.5 for count in rarest))


def _whole(parts: Sequence[Record], text: str, unsafe: bool, source: str) -> Record:
    """A prompt alone, with the label and, where it is harmful, all the categories of what it is made from."""
    found = [part.categories for part in parts if unsafe]
    certain = frozenset(code for categories in found for code in categories.certain)
    possible = frozenset(code for categories in found for code in categories.possible)
    return replace(
        parts[0],
        prompt=text,
        response=None,
        unsafe=unsafe,
        response_unsafe=None,
        categories=Categories(certain, possible),
        source=source,
    )


def joined(records: Sequence[Record], count: int, rng: random.Random) -> list[Record]:
    """Harmless prompts, and in every second text one harmful part."""
    safe = [r for r in records if r.unsafe is False and len(r.prompt) < PART]
    unsafe = [r for r in records if r.unsafe and len(r.prompt) < PART]
    if not safe or not unsafe:
        return []
    out, weights = [], _weights(unsafe)
    for number in range(count):
        parts = rng.sample(safe, min(len(safe), rng.randint(2, 5)))
        culprit = rng.choices(unsafe, cum_weights=weights)[0] if number % 2 else None
        texts = [p.prompt for p in parts] + [
            p.response for p in parts[:1] if p.response and rng.random() < 0.5
        ]
        if culprit:
            texts[rng.randrange(len(texts))] = culprit.prompt
        text = rng.choice(SEPARATORS).join(texts)
        out.append(_whole([culprit or parts[0]], text, culprit is not None, "joined"))
    return out


def buried(records: Sequence[Record], count: int, rng: random.Random) -> list[Record]:
    """Harmless prose, and within it a short prompt, in every second text a harmful one.

    Both halves are disturbed alike: what differs is what was put in.
    """
    prose = [r for r in records if r.unsafe is False and len(r.prompt) >= PART and ". " in r.prompt]
    guests = {
        label: [r for r in records if r.unsafe is label and len(r.prompt) < PART] for label in (False, True)
    }
    if not prose or not all(guests.values()):
        return []
    out, weights = [], {label: _weights(pool) for label, pool in guests.items()}
    for number in range(count):
        label = bool(number % 2)
        host, guest = rng.choice(prose), rng.choices(guests[label], cum_weights=weights[label])[0]
        sentences = host.prompt.split(". ")
        place = rng.randint(0, len(sentences) - 1)
        before = "".join(f"{sentence}. " for sentence in sentences[:place])
        between = rng.choice((" ", "\n\n"))
        text = f"{before.rstrip()}{between}{guest.prompt}{between}{'. '.join(sentences[place:])}".strip()
        out.append(_whole([guest], text, label, "buried"))
    return out


def threads(records: Sequence[Record], count: int, rng: random.Random) -> list[Record]:
    """Texts of one source and one label: all harmful, or all harmless."""
    pools: dict[tuple[str, bool], list[Record]] = defaultdict(list)
    for record in records:
        if record.unsafe is not None and len(record.prompt) < PART:
            pools[record.source, record.unsafe].append(record)
    by_label = {
        label: [p for (_, kind), p in sorted(pools.items()) if kind is label] for label in (False, True)
    }
    if not all(by_label.values()):
        return []
    out = []
    for number in range(count):
        pool = rng.choice(by_label[bool(number % 2)])
        parts = rng.sample(pool, min(len(pool), rng.randint(2, 8)))
        text = rng.choice(SEPARATORS).join(p.prompt for p in parts)
        out.append(_whole(parts, text, bool(number % 2), "threads"))
    return out


def transcripts(records: Sequence[Record], count: int, rng: random.Random) -> list[Record]:
    """Pairs as one text, unsafe where either turn is; half of them harmless, as far as there are."""
    by_label: dict[bool, list[Record]] = {False: [], True: []}
    for record in records:
        if record.response:
            if record.unsafe or record.response_unsafe:
                by_label[True].append(record)
            elif record.unsafe is False and record.response_unsafe is False:
                by_label[False].append(record)
    out = []
    for label, pool in by_label.items():
        for record in rng.sample(pool, min(len(pool), count // 2)):
            asks, answers = rng.choice(SPEAKERS)
            text = f"{asks}{record.prompt}{rng.choice(SEPARATORS[1:3])}{answers}{record.response}"
            out.append(_whole([record], text, label, "transcripts"))
    return out


KINDS: tuple[Callable[[Sequence[Record], int, random.Random], list[Record]], ...] = (
    joined,
    buried,
    threads,
    transcripts,
)


def longer(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Up to `count` texts of each kind."""
    return [text for make in KINDS for text in make(records, count, random.Random(f"{seed}/{make.__name__}"))]
