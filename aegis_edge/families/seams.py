"""Text to pieces and ids: where content meets template, and tokens may span the two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aegis_edge.errors import FamilyError
from aegis_edge.families.answers import fill
from aegis_edge.families.family import Vocabulary
from aegis_edge.families.listing import Ids

LONGEST_SEAM = 32  # characters
# What content may begin and end with: tokens join across a seam by the characters at it.
_STARTS = (
    "How",
    "how",
    " how",
    "  how",
    "\nhow",
    "\n\n how",
    "7",
    "?",
    '"',
    "'s",
    "(",
    "é",
    "中",
    "🙂",
    "\t",
)
_ENDS = ("end", "7", ".", "?", '"', ")", "。", "🙂", "é", " ", "\n", "...", "'", "```")


def find_seam(
    family: str, of: str, texts: Sequence[Sequence[tuple[str, str]]], vocabulary: Vocabulary
) -> tuple[str, str]:
    """The shortest text before and after the content that, encoded with it, gives the ids of the whole,
    whatever of _STARTS and _ENDS the content begins and ends with; the same in all texts, each as
    `pieces_of` gives it. Raises FamilyError."""
    sides = {
        (_text(pieces, index - 1), _text(pieces, index + 1))
        for pieces in texts
        for index, piece in enumerate(pieces)
        if piece == ("content", of)
    }
    befores, afters = ([*{side[i]: None for side in sorted(sides)}] for i in (0, 1))

    def holds(left: str, right: str) -> bool:
        return vocabulary.ids(left + right) == vocabulary.ids(left) + vocabulary.ids(right)

    for n in range(LONGEST_SEAM + 1):
        before = befores[0][len(befores[0]) - n :] if n <= len(befores[0]) else None
        if before is not None and all(
            text.endswith(before) and holds(text[: len(text) - n], before + start)
            for text in befores
            for start in _STARTS
        ):
            break
    else:
        raise _unseamed(family, f"before {{{of}}}")
    for n in range(LONGEST_SEAM + 1):
        after = afters[0][:n] if n <= len(afters[0]) else None
        if after is not None and all(
            text.startswith(after) and holds(end + after, text[n:]) for text in afters for end in _ENDS
        ):
            return before, after
    raise _unseamed(family, f"after {{{of}}}")


def _unseamed(family: str, where: str) -> FamilyError:
    return FamilyError(
        f"family {family!r}: this tokenizer joins the template's text {where} to any content",
        hint="put a line break there, and the same text beside {prompt} in prompt and in exchange",
    )


def pieces_of(text: str, lines: Mapping[str, str], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """("control", token), ("content", name) and ("text", ...) in order. `lines` stand for {policy} or
    {category}, and are put in after added tokens were looked for."""
    controls = sorted(vocabulary.control_tokens, key=len, reverse=True)
    found: list[tuple[str, str]] = []
    pattern = "|".join([r"\{(?:prompt|response)\}", *map(re.escape, controls)])
    for piece in re.split(f"({pattern})", text):
        if piece in ("{prompt}", "{response}"):
            found.append(("content", piece[1:-1]))
        elif piece in vocabulary.control_tokens:
            found.append(("control", piece))
        elif piece:
            is_first = not found or found[-1][0] == "control"
            filled = fill(piece, lines)
            found.append(("text", vocabulary.led(filled, not found) if is_first else filled))
    return found


def _text(pieces: Sequence[tuple[str, str]], index: int) -> str:
    if 0 <= index < len(pieces) and pieces[index][0] == "text":
        return pieces[index][1]
    return ""


def parts_of(
    pieces: Sequence[tuple[str, str]], seams: Mapping[str, tuple[str, str]], vocabulary: Vocabulary
) -> list[Any]:
    """Ids and names of content in turn, seams cut off the text beside content."""
    parts: list[Any] = []
    for index, (kind, value) in enumerate(pieces):
        if kind == "content":
            parts.append(value)
            continue
        if kind == "control":
            ids: Ids = (vocabulary.control_id(value),)
        else:
            left = pieces[index - 1] if index else ("", "")
            right = pieces[index + 1] if index + 1 < len(pieces) else ("", "")
            start = len(seams[left[1]][1]) if left[0] == "content" else 0
            end = len(value) - (len(seams[right[1]][0]) if right[0] == "content" else 0)
            if start > end:
                raise FamilyError(
                    f"the text {value!r} between two pieces of content is too short for this tokenizer",
                    hint="put a line of text between {prompt} and {response}",
                )
            ids = vocabulary.ids(value[start:end])
        if parts and not isinstance(parts[-1], str):
            parts[-1] += ids
        else:
            parts.append(ids)
    return parts


def common(lists: Sequence[Ids]) -> Ids:
    """The longest beginning that all have."""
    n = 0
    while lists and all(n < len(ids) for ids in lists) and len({ids[n] for ids in lists}) == 1:
        n += 1
    return lists[0][:n] if lists else ()
