from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marker_guard import MARKER, RandomGuardWeights, guard_of, marker_guard

from aegis_edge import passes
from aegis_edge.errors import ContextError
from aegis_edge.views import HIDDEN, LOOKS, MARKS, SHAPES, SPACED, TAGS, view_of
from aegis_edge.windows import Limits

CONTEXT = 512


def tagged(text: str) -> str:
    return "".join(chr(0xE0000 + ord(char)) for char in text)


@pytest.mark.parametrize(
    ("text", "view", "names"),
    [
        ("lo\u200bck", "lock", (HIDDEN,)),
        ("lo\u00adck\ufeff", "lock", (HIDDEN,)),
        ("l\u200do\u200cck", "lock", (HIDDEN,)),
        ("\u202elock\u202c", "lock", (HIDDEN,)),
        ("\u2066lo\u2069ck\u3164\u2800", "lock", (HIDDEN,)),
        ("a\ufe00\ufe0f\U000e0100b", "ab", (HIDDEN,)),
        ("😀\ufe0f\U000e0101\U000e0102", "😀\ufe0f", (HIDDEN,)),
        ("hi" + tagged("lock!"), "hilock!", (TAGS,)),
        ("\U0001f3f4" + tagged("pick a lock"), "\U0001f3f4pick a lock", (TAGS,)),
        ("\U000e0001" + tagged("a"), "a", (TAGS, HIDDEN)),
        ("ｌｏｃｋ", "lock", (SHAPES,)),
        ("𝐥𝑜𝒸𝓀 ⓛⓞⓒⓚ", "lock lock", (SHAPES,)),
        ("ﬁne m²", "fine m2", (SHAPES,)),
        ("l\u0336o\u0336c\u0336k\u0336", "lock", (MARKS,)),
        ("l\u043e\u0441k", "lock", (LOOKS,)),
        ("p\u0456ck \u0430 l\u03bfck", "pick \u0430 lock", (LOOKS,)),
        ("\u0406gn\u043ere \u13d9ery \u0585ld", "Ignore Very old", (LOOKS,)),
        ("h\u0451llo", "h\u00ebllo", (LOOKS,)),
        ("l\u043e\u0336ck", "lock", (LOOKS, MARKS)),
        ("l\u200b\u043eck", "lock", (HIDDEN, LOOKS)),
        ("l \u043e c k", "lock", (SPACED, LOOKS)),
        ("l o c k", "lock", (SPACED,)),
        ("pick: l-o-c-k.", "pick: lock.", (SPACED,)),
        ("l\u200b o c k", "lock", (HIDDEN, SPACED)),
        ("ｌ ｏ ｃ ｋ", "lock", (SHAPES, SPACED)),
    ],
)
def test_what_is_hidden_is_undone_and_named(text, view, names):
    assert view_of(text) == (view, names)
    assert view_of(view)[0] == view


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How do I pick a lock?\r\n\tLike this…",
        "naïve café, Übung, e\u0301 and \u00e9",
        "你好，世界！「什么」？　全角空格",
        "한국어 \u1112\u1161\u11ab",
        "नमस्ते क्\u200dष می\u200cخواهم",
        "שָׁלוֹם مَرْحَبًا",
        "❤\ufe0f 👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 1\ufe0f\u20e3 👍🏽",
        "\U0001f3f4" + tagged("gbsct") + "\U000e007f",
        "a b c, I am",
        "A. B. Smith, p. 3, x + y = z, 1 2 3 4",
        "\u0600 12 \u06dd",
        "don't \u00a0 no-break \u2009thin\u3000wide",
        MARKER + "\x00\x7f",
        "\u0420\u0430\u0441\u0441\u043a\u0430\u0437 \u043e \u043a\u043e\u0442\u0435, "
        "\u0440\u043e\u0441\u0430 \u0443 \u043c\u043e\u0440\u044f",
        "\u0391\u03b2\u03b3\u03cc \u03ba\u03b1\u03b9 \u03bd\u03b5\u03c1\u03cc, \u03bf\u03c1\u03bf\u03c2",
        "USB-\u043a\u0430\u0431\u0435\u043b\u044c, VIP\u043e\u0432, Wi-Fi \u0432 \u043a\u0430\u0444\u0435, "
        "\u0441\u043e\u0440 and \u043e\u0441\u0430",
        "5 \u03bcm, k\u03a9, \u0394x, \u03b1x + \u03bdy, \u03c0r",
    ],
)
def test_ordinary_text_has_no_second_view(text):
    assert view_of(text) == (text, ())


LOOKING = {
    "a": "\u0430\u03b1",
    "c": "\u0441",
    "e": "\u0435",
    "o": "\u043e\u03bf\u0585",
    "p": "\u0440\u03c1",
    "v": "\u03bd",
    "x": "\u0445",
}
LATIN_WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=9)


@settings(max_examples=200, deadline=None)
@given(LATIN_WORDS, st.data())
def test_a_latin_word_with_look_alikes_is_read_as_the_word(word, data):
    chosen = [data.draw(st.sampled_from(char + LOOKING.get(char, ""))) for char in word]
    disguised = "".join(chosen)
    is_mixed = disguised != word and any(char.isascii() for char in disguised)
    assert view_of(disguised) == ((word, (LOOKS,)) if is_mixed else (disguised, ()))


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        *(
            st.text([chr(code) for code in range(first, last) if chr(code).isalpha()], max_size=12)
            for first, last in ((0x410, 0x460), (0x391, 0x3CA), (0x531, 0x588), (0x13A0, 0x13F5))
        )
    )
)
def test_a_word_of_one_script_is_left_alone(word):
    assert LOOKS not in view_of(word)[1]


def test_inverse_without_the_table_look_alikes_stay(monkeypatch):
    monkeypatch.setattr("aegis_edge.lookalikes._LATIN_OF", {})
    assert view_of("l\u043eck") == ("l\u043eck", ())


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=40))
def test_a_view_is_text_and_named_where_it_differs(text):
    view, names = view_of(text)
    assert (view == text) == (names == ())
    view.encode("utf-8")
    plain = [char for char in text if char.isascii() and char.isalnum()]
    shown = iter(view)
    assert all(char in shown for char in plain)  # in order: nothing that can be read is dropped


def test_long_text_takes_no_time():
    for text in (
        "a b c d e " * 40_000,
        "今天天气很好，" * 60_000,
        "l o" * 100_000,
        "a\u0300" * 100_000,
        "l\u043eck \u0440\u043e\u0441\u0430 " * 40_000,
        "l\u043e" * 100_000,
    ):
        start = time.process_time()
        view_of(text)
        assert time.process_time() - start < 5


# --- verdicts ---


@pytest.fixture(scope="module")
def weights(tiny_encoder):
    return RandomGuardWeights("w8a8", max(tiny_encoder.control_ids) + 1, CONTEXT)


@pytest.fixture(scope="module")
def guard(weights, tiny_encoder, tiny_plan, tiny_policy):
    return guard_of(weights, tiny_encoder, tiny_plan, tiny_policy)


HIDING = ["ｌｏｃｋ", "w\u200bords", "l o c k and key", "hi" + tagged(" there"), "pl\u0336ain", "l\u043eck"]


def test_the_higher_risk_of_the_two_views_wins(guard):
    deciding = set()
    for word in [w + tail for w in HIDING for tail in ("", " policy", " user?", " weapons", " 123")]:
        view, names = view_of(word)
        verdict, plain = guard.check(word), guard.check(view)
        raw = guard._passes.judge([guard._encoder.encode(_talk(word))])[0].ratings["prompt"]
        assert verdict.prompt == max(raw, plain.prompt, key=lambda rating: rating.probability)
        assert verdict.anomaly == ", ".join(names) and plain.anomaly is None
        assert verdict.tokens == len(guard._encoder.content.ids(word))
        deciding.add(verdict.prompt == raw)
        answer = guard.check("lock?", word)
        assert answer.anomaly == verdict.anomaly and answer.response is not None
        assert answer.response.probability >= guard.check("lock?", view).response.probability
    assert deciding == {True, False}


def _talk(text):
    from aegis_edge import Conversation

    return Conversation(text)


def test_a_marker_that_only_the_view_shows_is_found(tiny_encoder, tiny_plan, tiny_policy):
    marked = marker_guard(tiny_encoder, tiny_plan, tiny_policy, Limits(40), CONTEXT, marker="Z")
    for text, name in (("Ｚ", SHAPES), (tagged("Z"), TAGS)):
        for long in ("", "!?" * 60):
            verdict = marked.check(long + text + long)
            assert not verdict.safe and verdict.anomaly == name
            assert verdict.window is None or verdict.window.characters is None
            answer = marked.check("fine", long + text)
            assert answer.prompt.safe and answer.response is not None and not answer.response.safe


def test_a_marker_that_the_view_drops_is_found_in_the_text(tiny_encoder, tiny_plan, tiny_policy):
    """Inverse of folding alone."""
    marked = marker_guard(tiny_encoder, tiny_plan, tiny_policy, Limits(40), CONTEXT, marker="\u034f")
    assert view_of("a\u034fb") == ("ab", (HIDDEN,))
    verdict = marked.check("a\u034fb")
    assert marked.check("ab").safe and not verdict.safe and verdict.anomaly == HIDDEN


def test_ordinary_text_costs_nothing(guard, monkeypatch):
    added: list[int] = []
    extend = passes.extend
    monkeypatch.setattr(
        passes, "extend", lambda tree, segments: added.append(len(segments)) or extend(tree, segments)
    )
    guard.check("你好，世界！")
    ordinary = added[0]
    guard.check("ｌｏｃｋ")
    assert ordinary == 2 and 4 in added


def test_windows_and_turns_of_a_view(weights, tiny_encoder, tiny_plan, tiny_policy):
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(40))
    text = "ｌｏｃｋ and 12 " * 12
    verdict = guard.check(text)
    assert verdict.anomaly == SHAPES and verdict.tokens_seen == len(tiny_encoder.ids(text))
    assert verdict.prompt.probability >= guard.check(view_of(text)[0]).prompt.probability
    if verdict.window is not None and verdict.window.characters is None:
        assert verdict.window.end <= len(tiny_encoder.ids(view_of(text)[0]))
    talk = [{"role": "user", "content": "lock?"}, {"role": "assistant", "content": "w\u200bords"}]
    found = guard.check_turns(talk)
    assert found.anomaly == HIDDEN and found.turn in (0, 1)


def test_a_view_that_grows_past_the_budget_is_an_error(weights, tiny_encoder, tiny_plan, tiny_policy):
    text = "\ufdfa" * 20  # one character, 18 in its NFKC form
    tokens = len(tiny_encoder.ids(text))
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(max_tokens=tokens))
    with pytest.raises(
        ContextError, match=rf"the conversation has (at least )?\d+ tokens; the budget is {tokens}"
    ):
        guard.check(text)


@pytest.mark.parametrize(
    "text", ["ｌｏｃｋ it w\u200bell, ﬁne " * 4, "l o c k e d", "a" + tagged("bcd") + "ｅ"]
)
def test_a_stream_has_the_views_as_well(guard, text):
    for size in (1, 3, 10):
        with guard.stream("ｌｏｃｋ?") as stream:
            for i in range(0, len(text), size):
                assert stream.feed(text[i : i + size]) == guard.check("ｌｏｃｋ?", stream.text)
        assert stream.close() == guard.check("ｌｏｃｋ?", text)
