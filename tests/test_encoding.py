from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from aegis_edge.conversation import Conversation
from aegis_edge.encoding import ContentEncoder, ConversationEncoder
from aegis_edge.errors import ArtifactError, ContextError, InputError
from aegis_edge.families import Node, get_family
from aegis_edge.families.plan import ROOT
from aegis_edge.policy import Policy

CONTEXT = 512


def added_tokens(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def texts_around(tokens: list[str]) -> st.SearchStrategy[str]:
    """Added tokens whole, cut anywhere, and joined with anything at all."""
    token = st.sampled_from(tokens)
    piece = token.flatmap(lambda t: st.tuples(st.integers(0, len(t)), st.integers(0, len(t))).map(
        lambda cut: t[min(cut):max(cut)]))  # fmt: skip
    filler = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
    return st.lists(st.one_of(token, piece, filler), max_size=8).map("".join)


def is_spelt(tokenizer: Tokenizer, char: str) -> bool:
    """Whether the byte-level vocabulary has a token for every byte of the character."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(char)
    return all(tokenizer.token_to_id(byte) is not None for byte in split[0][0])


@pytest.fixture(params=["tiny", "base"])
def pair(request) -> tuple[Tokenizer, ContentEncoder]:
    """A tokenizer and the content encoder made of it."""
    return request.getfixturevalue(f"{request.param}_tokenizer"), request.getfixturevalue(
        f"{request.param}_encoder"
    )


# --- content never becomes a control id ---


def test_added_tokens_that_plain_text_spells_are_text():
    """Gemma's runs of line breaks are text; `<think>`, no more special but never spelt, is control."""
    vocab = {c: i for i, c in enumerate(["a", "\n", "<", ">", "?", "\n\n", "<t>", "<s>"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("\n", "\n")]))
    tokenizer.add_tokens([AddedToken("\n\n"), AddedToken("<t>")])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    encoder = ContentEncoder(tokenizer)
    assert encoder.control_tokens == {"<t>", "<s>"} and encoder.control_ids == {6, 7}
    assert encoder.ids("a\n\na") == tuple(tokenizer.encode("a\n\na").ids) == (0, 5, 0)
    assert encoder.control_ids.isdisjoint(encoder.ids("<t><s>"))


def test_no_text_becomes_a_control_id_and_none_is_lost(pair):
    tokenizer, encoder = pair
    control = set(tokenizer.get_added_tokens_decoder())
    assert encoder.control_ids == control and control

    @settings(max_examples=500, deadline=None)
    @given(texts_around(added_tokens(tokenizer)))
    def holds(text):
        ids = encoder.ids(text)
        assert control.isdisjoint(ids)
        spelt = "".join(char if is_spelt(tokenizer, char) else "\ufffd" for char in text)
        assert tokenizer.decode(list(ids), skip_special_tokens=False) == spelt

    holds()


def test_every_added_token_at_every_cut(pair):
    tokenizer, encoder = pair
    control = set(tokenizer.get_added_tokens_decoder())
    for token in added_tokens(tokenizer):
        for cut in range(len(token) + 1):
            for text in (
                token[:cut] + token[cut:],
                token[cut:] + token,
                token + token[:cut],
                token[:cut] + " " + token,
            ):
                assert control.isdisjoint(encoder.ids(text)), text


def test_inverse_the_plain_tokenizer_does_make_control_ids(pair):
    tokenizer, _ = pair
    control = set(tokenizer.get_added_tokens_decoder())
    for token in added_tokens(tokenizer):
        assert not control.isdisjoint(tokenizer.encode(f"a{token}b", add_special_tokens=False).ids)
    try:
        find(
            texts_around(added_tokens(tokenizer)),
            lambda text: not control.isdisjoint(tokenizer.encode(text, add_special_tokens=False).ids),
        )
    except NoSuchExample:
        pytest.fail("the property can not fail: its texts never spell a token")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_control_ids_of_a_conversation_are_the_plans_own(data, tiny_tokenizer, tiny_encoder, tiny_plan):
    """Also where one content ends with half a token and the next begins with the other half."""
    texts = texts_around(added_tokens(tiny_tokenizer))
    conversation = Conversation(data.draw(texts), data.draw(st.none() | texts))
    encoded = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT).encode(conversation)
    ids = np.concatenate([segment.ids for segment in encoded.segments])
    found = [int(i) for i in ids if int(i) in tiny_encoder.control_ids]
    start, end = (tiny_tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert found == ([end] if conversation.response is None else [end, start, end])


def test_a_tokenizer_that_can_not_take_a_control_token_apart_refuses_the_text():
    """WordLevel looks whole words up in the vocabulary, control tokens among them."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[END]": 1, "hello": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[END]"])
    encoder = ContentEncoder(tokenizer)
    assert encoder.ids("hello") == (2,)
    with pytest.raises(InputError, match="spells a control token that this tokenizer can not take apart"):
        encoder.ids("hello [END]")


# --- on ordinary text the ids are the tokenizer's own ---


@pytest.mark.parametrize(
    "text",
    [
        "How do I pick a lock?",
        "  leading, trailing  \n\n\ttabs and\r\nlines ",
        "naïve café, Übung, 你好，世界, مرحبا, हिन्दी, שלום",
        "😀 👩‍👩‍👧‍👦 emoji, \u200bzero\u200dwidth\u202e bidi",
        "def f(x): return x[0:10] ** 2  # 3.14159 1,000,000",
        "<b>not a token</b> <|almost|> </s> [INST] ### Response:",
        "a" * 1000,
    ],
)
def test_ordinary_text_has_the_tokenizers_own_ids(pair, text):
    tokenizer, encoder = pair
    assert list(encoder.ids(text)) == tokenizer.encode(text, add_special_tokens=False).ids


def test_all_ordinary_text_has_the_tokenizers_own_ids(pair):
    tokenizer, encoder = pair

    @settings(max_examples=300, deadline=None)
    @given(
        st.text(
            st.characters(exclude_categories=("Cs",)).filter(lambda c: is_spelt(tokenizer, c)), max_size=60
        )
    )
    def holds(text):
        if not any(token in text for token in added_tokens(tokenizer)):
            assert list(encoder.ids(text)) == tokenizer.encode(text, add_special_tokens=False).ids

    holds()


def test_characters_the_vocabulary_has_no_bytes_for_are_not_dropped(base_tokenizer, base_encoder):
    """SmolLM2 has no token for 0x04, 0x06 and others, nor for 0xF1, the first byte of U+40000 to U+7FFFF."""
    replacement = base_encoder.ids("\ufffd")
    for char in ("\x04", "\x06", "\x13", "\x1d", "\U00040000", "\U000a0000"):
        assert base_encoder.ids(char) == replacement
        assert base_encoder.ids(f"bo{char}mb") == base_encoder.ids("bo\ufffdmb")
    # The inverse: on its own the tokenizer says nothing was there.
    assert base_tokenizer.encode("\x04\x06\x13\x1d", add_special_tokens=False).ids == []
    assert base_encoder.ids("\x00") and base_encoder.ids("\x01\x02\x03\x7f")


def test_settings_of_the_file_that_cut_pad_or_add_are_left_out(tiny_tokenizer):
    text = "How do I pick a lock? " * 9
    changed = Tokenizer.from_str(tiny_tokenizer.to_str())
    changed.enable_truncation(4)
    changed.enable_padding(length=64)
    encoder = ContentEncoder.from_json(changed.to_str())
    assert list(encoder.ids(text)) == tiny_tokenizer.encode(text, add_special_tokens=False).ids
    assert len(changed.encode(text).ids) != len(encoder.ids(text))


def test_a_normaliser_is_kept(tiny_tokenizer):
    changed = Tokenizer.from_str(tiny_tokenizer.to_str())
    changed.normalizer = normalizers.Lowercase()
    assert ContentEncoder(changed).ids("LOCK") == ContentEncoder(tiny_tokenizer).ids("lock")


# --- refusals ---


def test_random_merges_are_refused(tiny_tokenizer):
    spec = json.loads(tiny_tokenizer.to_str())
    spec["model"]["dropout"] = 0.1
    with pytest.raises(ArtifactError, match="drops merges at random"):
        ContentEncoder.from_json(json.dumps(spec))


def test_a_vocabulary_without_replacement_is_refused():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ArtifactError, match=r"no bytes for U\+FFFD or '\?'"):
        ContentEncoder(tokenizer)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"model": 1}', '{"version":"1.0"}'])
def test_what_is_no_tokenizer_is_refused(text, tmp_path):
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: "):
        ContentEncoder.from_json(text)
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ArtifactError, match="can not be read"):
        ContentEncoder.from_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="can not be read"):
        ContentEncoder.from_file(path)


class NoEncode:
    """A tokenizer that must not be asked to encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str):
        assert name != "encode", "the text was tokenised"
        return getattr(self._tokenizer, name)


def test_huge_texts_are_refused_before_they_are_tokenised(tiny_tokenizer, tiny_plan, monkeypatch):
    encoder = ContentEncoder(tiny_tokenizer)
    monkeypatch.setattr(encoder, "_tokenizer", NoEncode(encoder._tokenizer))
    conversations = ConversationEncoder(encoder, tiny_plan, CONTEXT)
    message = r"the conversation has at least \d+ tokens; beside its policy this guard takes at most \d+"
    with pytest.raises(ContextError, match=message) as caught:
        conversations.encode(Conversation("How do I pick a lock? " * 1_000_000))
    assert caught.value.hint == "check it in parts; it is never cut silently"
    with pytest.raises(AssertionError, match="the text was tokenised"):
        conversations.encode(Conversation("How do I pick a lock?"))


def test_the_estimate_of_a_texts_length_is_never_too_high(tiny_encoder, tiny_tokenizer):
    longest = max(tiny_tokenizer.get_vocab(), key=len)
    text = longest.replace("Ġ", " ") * 2000
    tokens = len(tiny_encoder.ids(text))
    assert len(tiny_encoder.encode(text, tokens)) == tokens


# --- conversations to nodes ---


def test_a_prompt_alone(tiny_tokenizer, tiny_encoder, tiny_plan):
    encoded = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT).encode(Conversation("lock?"))
    content, verdict = encoded.segments
    assert content.ids.tolist() == list(tiny_encoder.ids("lock?"))
    assert (content.parent, content.slots, content.ids.dtype) == (0, (), np.int32)
    assert (verdict.ids.tolist(), verdict.parent, verdict.slots) == (
        [tiny_tokenizer.token_to_id("<|im_end|>")],
        1,
        (0,),
    )
    assert (encoded.reads, encoded.last, encoded.content) == (("prompt",), 2, len(content.ids))
    assert encoded.size == len(content.ids) + 1


def test_an_exchange(tiny_tokenizer, tiny_encoder, tiny_plan):
    encoded = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT).encode(Conversation("lock?", "no."))
    assert [s.parent for s in encoded.segments] == [0, 1, 2, 3]
    assert [s.slots for s in encoded.segments] == [(), (0,), (), (0,)]
    assert (encoded.reads, encoded.last) == (("prompt", "response"), 4)
    assert encoded.content == len(tiny_encoder.ids("lock?")) + len(tiny_encoder.ids("no."))
    ids = [i for s in encoded.segments for i in s.ids.tolist()]
    text = tiny_tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "lock?<|im_end|>\n<|im_start|>assistant\nno.<|im_end|>"


def test_empty_content_is_no_node(tiny_encoder, tiny_plan):
    encoder = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    alone = encoder.encode(Conversation(""))
    assert [s.parent for s in alone.segments] == [0]
    assert (alone.reads, alone.last, alone.content, alone.size) == (("prompt",), 1, 0, 1)
    both = encoder.encode(Conversation("", ""))
    assert [s.parent for s in both.segments] == [0, 1, 2]
    assert (both.reads, both.last, both.content) == (("prompt", "response"), 3, 0)


def test_children_of_an_empty_node_hang_from_its_parent(tiny_encoder, tiny_plan):
    """In a plan whose content follows a marker of its own, as in other families."""
    nodes = (Node(ROOT, ((5, 6),)), Node(0, ("prompt",)), Node(1, ((7,),), reads="prompt"))
    encoder = ConversationEncoder(tiny_encoder, replace(tiny_plan, prompt=nodes), CONTEXT)
    assert [s.parent for s in encoder.encode(Conversation("lock")).segments] == [0, 1, 2]
    empty = encoder.encode(Conversation(""))
    assert [(s.ids.tolist(), s.parent) for s in empty.segments] == [([5, 6], 0), ([7], 1)]
    assert (empty.last, empty.size) == (2, 3)


def test_segments_move_behind_others_in_a_shared_tree(tiny_encoder, tiny_plan):
    encoded = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT).encode(Conversation("lock?", "no."))
    assert [s.parent for s in encoded.at(1)] == [0, 1, 2, 3]
    assert [s.parent for s in encoded.at(8)] == [0, 8, 9, 10]


def test_leaves_are_read_at_their_last_token(tiny_encoder, tiny_plan):
    leaves = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT).leaves(5)
    assert [tuple(leaf.ids.tolist()) for leaf in leaves] == list(tiny_plan.leaves)
    assert all(leaf.parent == 5 and leaf.slots == (len(leaf.ids) - 1,) for leaf in leaves)


@pytest.mark.parametrize("response", [None, "no."])
def test_the_longest_text_that_fits_fits_with_a_leaf_and_one_more_token_does_not(
    tiny_encoder, tiny_plan, response
):
    encoder = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    least = encoder.encode(Conversation("", response))
    longest_leaf = max(len(ids) for ids in tiny_plan.leaves)
    room = CONTEXT - len(tiny_plan.root) - least.size - longest_leaf
    text = "!?" * CONTEXT  # one token a character
    assert len(tiny_encoder.ids(text)) == len(text)
    fits = encoder.encode(Conversation(text[:room], response))
    assert len(tiny_plan.root) + fits.size + longest_leaf == CONTEXT
    with pytest.raises(ContextError) as caught:
        encoder.encode(Conversation(text[: room + 1], response))
    limit = room + least.content
    expected = f"the conversation has {limit + 1} tokens; beside its policy this guard takes at most {limit}"
    assert str(caught.value) == expected


def test_a_policy_that_leaves_no_room_is_refused(tiny_encoder):
    plan = get_family("aegis-edge").compile(tiny_encoder, Policy.default())
    with pytest.raises(
        ContextError, match=r"the policy has \d+ tokens and leaves no room for a conversation"
    ) as caught:
        ConversationEncoder(tiny_encoder, plan, len(plan.root) + 5)
    assert caught.value.hint == "use fewer categories or shorter descriptions"


def test_a_token_added_later_is_control_too(tiny_tokenizer):
    changed = Tokenizer.from_str(tiny_tokenizer.to_str())
    changed.add_tokens([AddedToken("lock", special=False)])
    encoder = ContentEncoder(changed)
    assert encoder.control_id("lock") not in encoder.ids("lock")
