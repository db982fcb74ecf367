"""The second view of a text: what Unicode hides, undone.

Text is judged as it is and, where this view of it differs, as the view. Only what can hide or disguise words
is undone, and each is named:

    hidden characters         zero-width, bidirectional, filler and other characters that show nothing:
                              dropped. Joiners between emoji or in scripts that need them, and one variation
                              selector behind a symbol, are ordinary text
    tag characters            U+E0020 to U+E007E, the invisible copies of ASCII: made visible. Those of a flag
                              (black flag, up to six letters, cancel tag) are ordinary
    compatibility characters  letters and digits in another shape (full width, mathematical, circled): their
                              NFKC form. Punctuation and spaces are left alone: CJK text is full of such
    stacked marks             combining marks that do not compose with the Latin letter before them: dropped
    look-alike letters        Cyrillic, Greek, Armenian and Cherokee letters that stand for Latin ones in a
                              word that holds both: the Latin ones (`lookalikes.py`)
    spaced letters            four or more single letters with one separator between each: joined

A word wholly of another script's letters stays as it is, though it look like a Latin one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from aegis_edge.lookalikes import folded

HIDDEN, TAGS, SHAPES = "hidden characters", "tag characters", "compatibility characters"
MARKS, LOOKS, SPACED = "stacked marks", "look-alike letters", "spaced letters"

_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f")
_TAG = re.compile("[\U000e0020-\U000e007e]")
# What shows nothing beside the category Cf: grapheme joiner, fillers, variation selectors. And what is of Cf,
# but shown: Arabic, Syriac and Kaithi signs around numbers.
_SHOWS_NOTHING = frozenset(
    map(chr, [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0])
) | frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
_SHOWN = frozenset(map(chr, [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD]))
_JOINERS = "\u200c\u200d"
_SPACED = re.compile(r"(?<!\w)[^\W\d_](?:([ .,·*_|\-/])[^\W\d_])(?:\1[^\W\d_]){2,}(?!\w)")
# What such a run holds, looked for first: a search that begins with one of a few characters is much faster.
_LONE = re.compile(r"[ .,·*_|\-/][^\W\d_][ .,·*_|\-/][^\W\d_][ .,·*_|\-/]")


def view_of(text: str) -> tuple[str, tuple[str, ...]]:
    """(the view, the names of what was undone); (`text`, ()) where they are the same."""
    found: list[str] = []
    view = text
    if not text.isascii():
        view = _undone(found, TAGS, view, _visible_tags(view))
        view = _undone(found, HIDDEN, view, _without_hidden(view))
        view = _undone(found, SHAPES, view, _reshaped(view))
        view = _undone(found, LOOKS, view, folded(view))
        view = _undone(found, MARKS, view, _without_stacked_marks(view))
    if _LONE.search(view):
        view = _undone(found, SPACED, view, _SPACED.sub(lambda run: run[0].replace(run[1], ""), view))
    if view != text:  # what was dropped or joined makes new words
        view = _undone(found, LOOKS, view, folded(view))
    return view, tuple(dict.fromkeys(found))


def _undone(found: list[str], name: str, before: str, after: str) -> str:
    if after != before:
        found.append(name)
    return after


def _visible_tags(text: str) -> str:
    if not _TAG.search(text):
        return text
    pieces, end = [], 0
    for flag in _FLAG.finditer(text):
        pieces += [_TAG.sub(_ascii, text[end : flag.start()]), flag[0]]
        end = flag.end()
    return "".join([*pieces, _TAG.sub(_ascii, text[end:])])


def _ascii(tag: re.Match[str]) -> str:
    return chr(ord(tag[0]) - 0xE0000)


def _without_hidden(text: str) -> str:
    if not any(_shows_nothing(char) for char in set(text)):
        return text
    ordinary: set[int] = set()
    for flag in _FLAG.finditer(text):
        ordinary.update(range(flag.start(), flag.end()))
    return "".join(
        char
        for i, char in enumerate(text)
        if not _shows_nothing(char) or i in ordinary or _is_needed(char, text[i - 1 : i], text[i + 1 : i + 2])
    )


def _shows_nothing(char: str) -> bool:
    if char.isascii() or char in _SHOWN:
        return False
    return char in _SHOWS_NOTHING or unicodedata.category(char) == "Cf"


def _is_needed(char: str, before: str, after: str) -> bool:
    """Whether a character that shows nothing has work to do between these two."""
    if char in _JOINERS:
        return (_is_symbol(before) and _is_symbol(after)) or (_has_joiners(before) and _has_joiners(after))
    return char in "\ufe0e\ufe0f" and (_is_symbol(before) or before in tuple("0123456789#*"))


def _is_symbol(char: str) -> bool:
    return char in ("\ufe0f", "\u20e3") or (
        char != "" and unicodedata.category(char) in ("So", "Sk", "Sm", "Po")
    )


def _has_joiners(char: str) -> bool:
    """Arabic to Myanmar and Khmer to Mongolian: scripts whose spelling uses joiners."""
    return "\u0600" <= char <= "\u109f" or "\u1780" <= char <= "\u18af"


def _reshaped(text: str) -> str:
    if unicodedata.is_normalized("NFKC", text):
        return text
    reshaped = "".join(map(_shape, text))
    # Marks that compose are the same text in another spelling, and no disguise: both are left as they are.
    return text if reshaped == text else unicodedata.normalize("NFC", reshaped)


@lru_cache(maxsize=4096)
def _shape(char: str) -> str:
    """NFKC of a letter, digit or symbol that stands for some; other characters as they are."""
    form = unicodedata.normalize("NFKC", char)
    if unicodedata.normalize("NFC", char) == form or not any(c.isalnum() for c in form):
        return char
    return form


def _without_stacked_marks(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    kept: list[str] = []
    base = ""
    for char in composed:
        if unicodedata.category(char) == "Mn":
            if base.isascii() and base.isalpha():
                continue
        else:
            base = char
        kept.append(char)
    return text if len(kept) == len(composed) else "".join(kept)
