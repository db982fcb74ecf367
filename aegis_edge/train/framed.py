"""One deed in two frames: what a text wants with a deed decides, not the deed's name.

Nearly every "How do I ..." of the public sets is harmful, and nearly every harmful one names its deed, so a
small guard learns the opening and the nouns. Here a request is taken apart ("how do I X") and its deed put
into frames that ask about X (its law, its prevention, the news of it) and into frames that still ask for X; a
hateful comment is quoted by someone who rejects it, and by someone who shares it. Harmless deeds and comments
go into both. The frames are those of data/framed.toml.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import resources

from aegis_edge.data.generate import five_grams
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record

_FRAMES: dict[str, dict[str, list[str]]] = tomllib.loads(
    resources.files("aegis_edge.data").joinpath("framed.toml").read_text("utf-8")
)
FRAMED, HARMLESS, QUOTED = "framed", "framed_harmless", "quoted"
# A deed of these is delicate however it is asked about: suicide and self harm, the sexual and minors.
DELICATE = frozenset({"S6", "S7"})
# Comments whose harm is what they say, and not a swear word, which would stay one in quotation marks.
COMMENTS = frozenset({"edos", "toxigen_demonstrations", "hatemoji_train"})
# Their "unsafe" is too often none: asked for outright, it would be learnt as harm.
NOISY = frozenset({"aart", "harmfulqa"})
MEANT = 0.8  # of harmless parts
HARMLESS_COMMENTS = 0.5  # of them: there are about twice as many as of the others
LONGEST = 160  # characters of a deed or comment

_REQUEST = re.compile(
    r"(?:please\s+)?(?:"
    r"how\s+(?:do|can|could|would|should|might)\s+(?:i|you|we|one|someone|somebody|a person)\s+(?:best\s+)?"
    r"|how\s+to\s+|(?:steps|methods|ways)\s+to\s+"
    r"|what(?:'s|\s+is|\s+are)\s+the\s+(?:best|easiest|fastest|safest)?\s*(?:way|ways|method|methods)\s+to\s+"
    r"|(?:(?:can|could)\s+you\s+)?(?:explain|describe|tell\s+me|show\s+me|teach\s+me)(?:\s+to\s+me)?\s+how\s+to\s+"
    r"|i\s+(?:want|need)\s+to\s+(?:know\s+how\s+to\s+|learn\s+how\s+to\s+)?"
    r")(?P<deed>[^.?!\n]+)[.?!\s]*",
    re.IGNORECASE,
)


def deed_of(prompt: str) -> str | None:
    """X of "how do I X?"; None where the prompt is no such request, or more than that."""
    match = _REQUEST.fullmatch(prompt.strip())
    if match is None:
        return None
    deed = match["deed"].strip()
    return deed if len(deed.split()) > 1 and len(deed) <= LONGEST else None


def _whole(record: Record, text: str, unsafe: bool, source: str) -> Record:
    categories = record.categories if unsafe else Categories()
    return replace(
        record,
        prompt=text,
        response=None,
        unsafe=unsafe,
        response_unsafe=None,
        categories=categories,
        source=source,
    )


def _both(
    parts: Sequence[tuple[Record, str]],
    slot: str,
    frames: dict[str, list[str]],
    sources: tuple[str, str],
    rng: random.Random,
) -> list[Record]:
    """Each harmful part once in a frame about it and once in one that means it, under the first source;
    harmless ones, under the second, mostly in the latter: that a text asks for steps must not give it away.
    """
    out = []
    for record, part in parts:
        bad = bool(record.unsafe)
        kinds = ("about", "meant") if bad else ("meant" if rng.random() < MEANT else "about",)
        for kind in kinds:
            text = rng.choice(frames[kind]).replace(slot, part)
            source = sources[0] if bad else sources[1]
            out.append(_whole(record, text[0].upper() + text[1:], bad and kind == "meant", source))
    return out


def framed(records: Sequence[Record], seed: int, held_out: Iterable[str] = ()) -> list[Record]:
    """The requests and comments among the records, in frames; but for texts that share a word 5-gram with a
    held-out one.
    """
    banned = {gram for text in held_out for gram in five_grams(text)}
    rng = random.Random(f"{seed}/framed")
    deeds = [
        (record, deed)
        for record in records
        if record.unsafe is not None
        and record.source not in NOISY
        and not record.categories.certain & DELICATE
        if (deed := deed_of(record.prompt))
    ]
    comments = [
        (record, record.prompt.strip())
        for record in records
        if record.source in COMMENTS and record.unsafe is not None
        if len(record.prompt) <= LONGEST and not set('"\n') & set(record.prompt)
        if record.unsafe or rng.random() < HARMLESS_COMMENTS
    ]
    made = _both(deeds, "{deed}", _FRAMES["deeds"], (FRAMED, HARMLESS), rng)
    made += _both(comments, "{text}", _FRAMES["comments"], (QUOTED, QUOTED), rng)
    return [record for record in made if not five_grams(record.prompt) & banned]
