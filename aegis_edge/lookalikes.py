"""Letters of other scripts that look like Latin ones, in words that hold both.

    word       letters, with the marks on them: three letters at least, formulae mix scripts in shorter ones
    is folded  where it holds a Latin letter and a look-alike, and is all Latin once those are replaced

So text in one script is left alone, whatever its letters look like, and so is a Latin name with another
script's ending where that has a letter of its own.

The table: Unicode's confusables.txt 17.0 (UTS #39, https://www.unicode.org/Public/security/), its Cyrillic,
Greek, Armenian and Cherokee letters whose prototype is one ASCII letter. The file writes a capital I as l;
here the two capitals that stand for it are I.
"""

from __future__ import annotations

import re
import unicodedata

_SHORTEST = 3
_LATIN_OF = {
    ord(letter): latin
    for letters, latins in {
        # Cyrillic
        "\u0430\u0410\u042c\u0412\u0441\u0421\u0501\u0435\u04bd\u0415\u050c": "aAbBcCdeeEG",
        "\u04bb\u041d\u0456\ua647\u0458\u0408\u041a\u0406\u04cf\u04c0\u041c": "hHiijJKIllM",
        "\u043e\u041e\u0440\u0420\u051b\u0433\u0455\u0405\u0422\u0475\u0474": "oOpPqrsSTvV",
        "\u0461\u0448\u051d\u051c\u0445\u0425\u0443\u04af\u0423\u04ae": "wwwWxXyyYY",
        # Greek
        "\u03b1\u0391\u0392\u0395\u03dc\u0397\u03b9\u03f3\u037f\u039a\u0399": "aABEFHijJKI",
        "\u039c\u03fa\u039d\u03bf\u03c3\u039f\u03c1\u03f8\u03a1\u03a4\u03c5": "MMNooOppPTu",
        "\u03bd\u03a7\u03b3\u03a5\u0396": "vXyYZ",
        # Armenian
        "\u0584\u0581\u0570\u0582\u0578\u057c\u0585\u0555\u0563\u0566\u054f": "fghinnoOqqS",
        "\u057d\u054d\u0561": "uUw",
        # Cherokee
        "\u13aa\u13cf\u13f4\uabaf\u13df\u13e7\u13a0\u13ac\u13c0\u13f3\u13c2": "AbBcCdDEGGh",
        "\u13bb\uab75\u13a5\u13ab\u13e6\u13de\u13b7\u13e2\uab81\u13a1\u13d2": "HiiJKLMPrRR",
        "\uabaa\u13d5\u13da\u13a2\uaba9\u13d9\uab83\u13b3\u13d4\u13a9\u13bd": "sSSTvVwWWYY",
        "\uab93\u13c3": "zZ",
    }.items()
    for letter, latin in zip(letters, latins, strict=True)
}
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f])+")


def folded(text: str) -> str:
    """`text` with the words that look Latin made so; unchanged where there is none."""
    letters = unicodedata.normalize("NFD", "".join(set(text)))
    return _WORD.sub(_folded, text) if any(ord(char) in _LATIN_OF for char in letters) else text


def _folded(match: re.Match[str]) -> str:
    word = match[0]
    if word.isascii():
        return word
    plain = unicodedata.normalize("NFD", word)  # a letter with an accent looks like the other one with it
    latin = plain.translate(_LATIN_OF)
    letters = [char for char in plain if not "\u0300" <= char <= "\u036f"]
    if latin == plain or len(letters) < _SHORTEST or not any(map(_is_latin, letters)):
        return word
    return unicodedata.normalize("NFC", latin) if all(map(_is_latin, latin)) else word


def _is_latin(char: str) -> bool:
    """ASCII letters, those of Latin-1 to Extended-B and Extended Additional, and marks on them."""
    return char.isascii() or any(
        first <= char <= last for first, last in ("\u00c0\u024f", "\u0300\u036f", "\u1e00\u1eff")
    )
