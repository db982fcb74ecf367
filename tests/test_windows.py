from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marker_guard import MARKER, RandomGuardWeights, guard_of, marker_guard

from aegis_edge import AegisError, Conversation, ScorerError
from aegis_edge.encoding import ConversationEncoder
from aegis_edge.errors import ContextError
from aegis_edge.families.plan import PROMPT, RESPONSE
from aegis_edge.reading import Reader, Script
from aegis_edge.windows import LEAST_WINDOW, Limits, overlap, spans

CONTEXT = 512
WINDOW = 40

# --- spans ---


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 600))
def test_every_token_is_in_a_window_and_neighbours_overlap_as_stated(tokens, size):
    found = spans(tokens, size)
    assert found[0][0] == 0 and found[-1][1] == tokens
    assert all(end - start == size for start, end in found[:-1])
    for (_, end), (start, last) in pairwise(found):
        assert end - start == overlap(size)
        assert last > end  # every window has something of its own
    assert (len(found) == 1) == (tokens <= size)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_no_longer_than_the_overlap_lies_whole_in_one_window(data):
    size, tokens = data.draw(st.integers(4, 600)), data.draw(st.integers(1, 5000))
    start = data.draw(st.integers(0, tokens - 1))
    end = min(tokens, start + overlap(size))
    assert any(a <= start and end <= b for a, b in spans(tokens, size))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 600))
def test_the_windows_of_a_growing_text_stay_where_they_are(tokens, more, size):
    before, after = spans(tokens, size), spans(tokens + more, size)
    assert before[:-1] == after[: len(before) - 1] and before[-1][0] == after[len(before) - 1][0]


def test_the_overlap_is_a_quarter_and_256_at_most():
    assert [overlap(size) for size in (16, 40, 1024, 8000)] == [4, 10, 256, 256]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 15}, "a window of 15 tokens; 16 are the least"),
        ({"max_tokens": 0}, "a budget of 0 tokens"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options, message):
    with pytest.raises(AegisError, match=message):
        Limits(**options)


# --- windows of conversations ---


@pytest.fixture(scope="module")
def reader(tiny_encoder, tiny_plan):
    return Reader(ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT), Limits(WINDOW))


def test_every_part_fits_and_every_token_is_in_one(reader, tiny_encoder):
    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=120), st.none() | st.text(max_size=120))
    def holds(prompt, response):
        script = reader.read(Conversation(prompt, response))
        for source in script.sources:
            assert np.array_equal(source.ids, tiny_encoder.encode(source.text))
            seen = np.zeros(len(source.ids), bool)
            for part in script.parts:
                span = part.about.get(source.of)
                if span is not None:
                    seen[span.start : span.end] = True
            assert seen.all()
        for part in script.parts:
            assert sum(span.end - span.start for span in part.about.values()) <= WINDOW
            assert part.encoded.reads == tuple(part.about)

    holds()


def test_a_response_is_read_under_its_prompt_or_the_end_of_it(reader, tiny_encoder):
    words = "lock policy user question " * 20
    short = reader.read(Conversation("lock?", words))
    tokens = len(tiny_encoder.ids("lock?"))
    assert [set(part.about) for part in short.parts[:2]] == [{PROMPT}, {PROMPT, RESPONSE}]
    assert all((part.about[PROMPT].start, part.about[PROMPT].end) == (0, tokens) for part in short.parts)
    assert short.parts[1].about[RESPONSE].end == WINDOW - tokens
    long = reader.read(Conversation(words, words))
    under = [part.about[PROMPT] for part in long.parts if RESPONSE in part.about]
    total = len(tiny_encoder.ids(words))
    assert {(span.start, span.end) for span in under} == {(total - WINDOW // 2, total)}


def test_what_fits_is_one_part_of_todays_nodes(reader, tiny_encoder, tiny_plan):
    plain = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    for talk in (Conversation(""), Conversation("lock?"), Conversation("lock?", "no."), Conversation("", "")):
        (part,) = reader.read(talk).parts
        wanted = plain.encode(talk)
        assert part.encoded.reads == wanted.reads and part.encoded.judged == wanted.judged
        for a, b in zip(part.encoded.segments, wanted.segments, strict=True):
            assert np.array_equal(a.ids, b.ids) and (a.parent, a.slots) == (b.parent, b.slots)


def test_past_the_budget_is_an_error(tiny_encoder, tiny_plan):
    encoder = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    reader = Reader(encoder, Limits(WINDOW, max_tokens=100))
    text = "!?" * 50
    assert reader.read(Conversation(text)).tokens == 100
    for talk in (Conversation(text + "!"), Conversation(text, "!"), Conversation("", text + "!")):
        with pytest.raises(
            ContextError, match="the conversation has 101 tokens; the budget is 100"
        ) as caught:
            reader.read(talk)
    assert caught.value.hint is not None and "--max-tokens" in caught.value.hint
    with pytest.raises(ContextError, match=r"the conversation has at least \d+ tokens; the budget is 100"):
        reader.read(Conversation("lock " * 100_000))


def test_long_texts_can_be_refused(tiny_encoder, tiny_plan):
    encoder = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    reader = Reader(encoder, Limits(WINDOW, refuse_long=True))
    assert len(reader.read(Conversation("!" * WINDOW)).parts) == 1
    with pytest.raises(ContextError, match="the conversation has 41 tokens; beside its policy") as caught:
        reader.read(Conversation("!" * 41))
    assert caught.value.hint == "check it in parts; it is never cut silently"


def test_a_token_that_no_part_holds_is_no_verdict(tiny_encoder, tiny_plan, tiny_policy):
    guard = guard_of(_random(tiny_encoder), tiny_encoder, tiny_plan, tiny_policy, Limits(WINDOW))
    script = guard._reader.read(Conversation("!?" * 100))
    outcomes = guard._passes.judge([part.encoded for part in script.parts])
    assert guard._reader.verdict(script, outcomes).tokens_seen == 200
    for gone in range(len(script.parts)):
        parts = script.parts[:gone] + script.parts[gone + 1 :]
        found = outcomes[:gone] + outcomes[gone + 1 :]
        with pytest.raises(ScorerError, match=r"\d+ of 200 tokens were scored; no verdict can be given"):
            guard._reader.verdict(Script(script.sources, parts), found)


# --- verdicts ---


def _random(encoder):
    return RandomGuardWeights("w8a8", max(encoder.control_ids) + 1, CONTEXT)


@pytest.fixture(scope="module")
def marked(tiny_encoder, tiny_plan, tiny_policy):
    return marker_guard(tiny_encoder, tiny_plan, tiny_policy, Limits(WINDOW), CONTEXT)


FILLERS = {
    "prose": "The user asks and the assistant answers the question. ",
    "cjk": "今天天气很好，我们去公园散步。",
    "hex": "9f86d081884c7d659a2feaa0c55ad015",
    "emoji": "😀👩‍👩‍👧‍👦🎉🚀",
}


@pytest.mark.parametrize("kind", FILLERS)
@pytest.mark.parametrize("windows", [1, 2, 3, 7, 20])
def test_a_span_is_seen_wherever_it_stands(marked, tiny_encoder, kind, windows):
    """At the start, in the middle, at the end, and around every one of the first seams."""
    text = FILLERS[kind] * (1 + windows * WINDOW // 4)
    sizes = np.array([0, *np.cumsum([len(tiny_encoder.ids(char)) for char in text])])
    step = WINDOW - overlap(WINDOW)
    wanted = WINDOW + (windows - 1) * step - 4
    text = text[: int(np.searchsorted(sizes, wanted))]
    safe = marked.check(text)
    assert safe.safe and safe.prompt.probability < 0.01
    seams = [
        int(np.searchsorted(sizes, i * step + d)) for i in range(1, min(windows, 4)) for d in (-1, 0, 9, 11)
    ]
    for at in {0, len(text) // 2, len(text), *seams}:
        at = min(at, len(text))
        verdict = marked.check(text[:at] + MARKER + text[at:])
        assert not verdict.safe and verdict.prompt.probability > 0.99, at
        assert verdict.tokens_seen == verdict.tokens_total
        if verdict.window is not None:
            assert verdict.window.characters is not None
            start, end = verdict.window.characters
            assert start <= at < end
    answer = marked.check("lock?", text + MARKER)
    assert not answer.safe and answer.prompt.safe and answer.response is not None
    assert not answer.response.safe
    assert answer.window is None or answer.window.of == "response"


def test_inverse_the_marker_is_not_seen_where_the_text_is_cut(marked):
    assert marked.check(("!?" * 100)[:WINDOW]).safe
    assert not marked.check("!?" * 100 + MARKER).safe


@pytest.mark.parametrize("talk", [Conversation("!? lock " * 60), Conversation("lock " * 9, "no user " * 50)])
def test_the_verdict_is_that_of_windows_made_by_hand(talk, tiny_encoder, tiny_plan, tiny_policy):
    guard = guard_of(_random(tiny_encoder), tiny_encoder, tiny_plan, tiny_policy, Limits(WINDOW))
    whole = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    prompt = tiny_encoder.encode(talk.prompt)
    parts = [whole.lay_out(prompt[a:b], None) for a, b in spans(len(prompt), WINDOW)]
    if talk.response is not None:
        response = tiny_encoder.encode(talk.response)
        context = prompt if len(prompt) <= WINDOW // 2 else prompt[-(WINDOW // 2) :]
        for a, b in spans(len(response), WINDOW - len(context)):
            parts.append(whole.lay_out(context, response[a:b]))
    assert len(parts) >= 8
    alone = [guard._passes.judge([part])[0] for part in parts]
    verdict = guard.check(talk.prompt, talk.response)
    assert verdict.prompt.probability == max(o.ratings["prompt"].probability for o in alone)
    risks = [rating for outcome in alone for rating in outcome.ratings.values()]
    assert verdict.safe == all(rating.safe for rating in risks)
    assert {c.name for c in verdict.categories} == {c.name for o in alone for c in o.categories}
    if talk.response is not None:
        assert verdict.response is not None
        assert verdict.response.probability == max(
            outcome.ratings["response"].probability for outcome in alone if "response" in outcome.ratings
        )
    assert verdict == guard.check_many(["a", talk, "b"])[1]
    if talk.response is None:
        a, b = spans(len(prompt), WINDOW)[int(np.argmax([o.ratings["prompt"].probability for o in alone]))]
        assert verdict.window is not None and (verdict.window.start, verdict.window.end) == (a, b)


def test_a_short_text_costs_no_pass_more(tiny_encoder, tiny_plan, tiny_policy):
    weights = _random(tiny_encoder)
    windowed = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(WINDOW))
    plain = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(refuse_long=True))
    items = ["", "lock?", ("lock?", "no."), "!?" * (WINDOW // 2)]
    assert windowed.check_many(items) == plain.check_many(items)
    assert all(verdict.window is None for verdict in windowed.check_many(items))


def test_a_least_window_is_kept(tiny_encoder, tiny_plan, tiny_policy):
    """Where the policy leaves fewer tokens than a window needs, what does not fit is refused."""
    encoder = ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT)
    room = encoder.limit(False)
    reader = Reader(ConversationEncoder(tiny_encoder, tiny_plan, CONTEXT - room + LEAST_WINDOW - 1), Limits())
    assert reader.read(Conversation("!" * (LEAST_WINDOW - 1)))
    with pytest.raises(ContextError, match="takes at most 15"):
        reader.read(Conversation("!" * LEAST_WINDOW))
