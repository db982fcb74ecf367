from __future__ import annotations

import pytest

from aegis_edge import Conversation, InputError


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "a\x00b", "\U0010ffff", "\ufeff x", "line\r\nline", "e\u0301"]
)
def test_text_is_kept_exactly_as_it_is(text):
    assert Conversation(text, text) == Conversation.of((text, text))
    assert Conversation(text).prompt == text


def test_bytes_are_utf8():
    assert Conversation("é".encode(), b"") == Conversation("é", "")


def test_an_empty_response_is_a_response():
    assert Conversation("a", "").response == ""
    assert Conversation("a").response is None
    assert Conversation.of(("a", None)) == Conversation.of("a")


@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        (b"ab\xff", None, "prompt: not valid UTF-8 (byte 0xff at offset 2)"),
        (b"\xed\xa0\x80", None, "prompt: not valid UTF-8 (byte 0xed at offset 0)"),
        ("a", b"\xc0\x80", "response: not valid UTF-8 (byte 0xc0 at offset 0)"),
        ("a", "hi \ud83d", "response: not valid Unicode: lone surrogate U+D83D at 3"),
        ("\udc80", None, "prompt: not valid Unicode: lone surrogate U+DC80 at 0"),
        (None, None, "prompt: expected text, found NoneType"),
        (3, None, "prompt: expected text, found int"),
        ("a", ["b"], "response: expected text, found list of 1"),
        (bytearray(b"a"), None, "prompt: expected text, found bytearray"),
    ],
)
def test_what_is_not_text_is_refused(prompt, response, message):
    with pytest.raises(InputError) as caught:
        Conversation(prompt, response)
    assert str(caught.value) == message


@pytest.mark.parametrize("item", [None, 1, (), ("a",), ("a", "b", "c"), {"prompt": "a"}])
def test_what_is_no_conversation_is_refused(item):
    with pytest.raises(
        InputError, match="expected text, a \\(prompt, response\\) pair or a Conversation, found"
    ):
        Conversation.of(item)


def test_conversations_can_not_change():
    with pytest.raises(AttributeError):
        Conversation("a").prompt = "b"  # type: ignore[misc]
