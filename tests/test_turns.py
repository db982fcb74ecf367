from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marker_guard import MARKER, RandomGuardWeights, guard_of, marker_guard

from aegis_edge import Conversation, Dialogue, InputError
from aegis_edge.conversation import ROLES, conversation_of
from aegis_edge.errors import ContextError
from aegis_edge.windows import Limits

CONTEXT = 512


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


TALK = talk(
    ("system", "Be kind."),
    ("user", "lock?"),
    ("assistant", "With a key."),
    ("assistant", "Or a pick."),
    ("tool", "1234"),
    ("assistant", "So it is."),
    ("user", "The weather?"),
    ("user", "Fine?"),
)


@pytest.fixture(scope="module")
def marked(tiny_encoder, tiny_plan, tiny_policy):
    return marker_guard(tiny_encoder, tiny_plan, tiny_policy, Limits(40), CONTEXT)


def test_exchanges():
    """Each of the assistant's turns answers the user's turn before it; all else is a prompt."""
    dialogue = Dialogue.of(TALK)
    assert dialogue.exchanges() == [(0, None), (1, 2), (1, 3), (4, None), (1, 5), (6, None), (7, None)]
    assert Dialogue.of(talk(("assistant", "Hello."), ("user", "a"))).exchanges() == [(None, 0), (1, None)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(ROLES), min_size=1, max_size=12))
def test_every_turn_is_in_an_exchange(roles):
    found = Dialogue.of(talk(*((role, "a") for role in roles))).exchanges()
    assert {turn for pair in found for turn in pair if turn is not None} == set(range(len(roles)))
    for prompt, response in found:
        assert prompt is None or roles[prompt] != "assistant"
        assert response is None or (roles[response] == "assistant" and (prompt is None or prompt < response))


@pytest.mark.parametrize("turn", range(len(TALK)))
def test_the_turn_that_decides_is_named(marked, turn):
    messages = [dict(message) for message in TALK]
    safe = marked.check_turns(messages)
    assert safe.safe and safe.turn in range(len(TALK))
    messages[turn]["content"] += MARKER
    verdict = marked.check_turns(messages)
    assert not verdict.safe and verdict.window is None
    assert verdict.response is not None
    if messages[turn]["role"] == "assistant":
        assert verdict.turn == turn and not verdict.response.safe and verdict.prompt.safe
    else:
        assert verdict.turn == turn and not verdict.prompt.safe


def test_a_turn_of_many_windows(marked):
    messages = [*TALK, {"role": "assistant", "content": "!?" * 60 + MARKER + "!?" * 60}]
    verdict = marked.check_turns(messages)
    assert not verdict.safe and verdict.turn == len(TALK)
    assert verdict.window is not None and verdict.window.of == "response"
    assert verdict.window.characters is not None
    start, end = verdict.window.characters
    assert start <= 120 < end < 240


def test_the_verdict_is_the_worst_of_the_exchanges(tiny_encoder, tiny_plan, tiny_policy):
    weights = RandomGuardWeights("w8a8", max(tiny_encoder.control_ids) + 1, CONTEXT)
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy)
    turns = Dialogue.of(TALK).turns
    alone = [
        guard.check(turns[p].content if p is not None else "", None if r is None else turns[r].content)
        for p, r in Dialogue.of(TALK).exchanges()
    ]
    verdict = guard.check_turns(TALK)
    assert verdict.prompt.probability == max(one.prompt.probability for one in alone)
    assert verdict.response is not None
    assert verdict.response.probability == max(one.response.probability for one in alone if one.response)
    assert verdict.safe == all(one.safe for one in alone)
    assert verdict.tokens == sum(len(tiny_encoder.ids(turn.content)) for turn in turns)
    assert verdict.tokens_seen == verdict.tokens_total
    risks = np.array([max(one.prompt.probability, getattr(one.response, "probability", 0)) for one in alone])
    assert verdict.turn in Dialogue.of(TALK).exchanges()[int(risks.argmax())]
    assert guard.check_many(["lock?", TALK, Dialogue.of(TALK)])[1:] == [verdict, verdict]
    assert guard.check_many(["lock?"])[0].turn is None


def test_one_exchange_is_a_conversation(tiny_encoder, tiny_plan, tiny_policy):
    weights = RandomGuardWeights("w8a8", max(tiny_encoder.control_ids) + 1, CONTEXT)
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy)
    pair = guard.check_turns(talk(("user", "lock?"), ("assistant", "no.")))
    whole = guard.check("lock?", "no.")
    assert (pair.prompt, pair.response, pair.categories) == (whole.prompt, whole.response, whole.categories)


def test_the_budget_is_of_all_turns(tiny_encoder, tiny_plan, tiny_policy):
    weights = RandomGuardWeights("w8a8", max(tiny_encoder.control_ids) + 1, CONTEXT)
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(max_tokens=20))
    assert guard.check_turns(talk(*[("user", "!?")] * 10)).tokens == 20
    with pytest.raises(ContextError, match="the conversation has 22 tokens; the budget is 20"):
        guard.check_turns(talk(*[("user", "!?")] * 11))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a dialogue without turns"),
        (["a"], 'turn 0: expected {"role": ..., "content": ...}'),
        ([{"role": "user"}], 'turn 0: expected {"role": ..., "content": ...}'),
        ([*TALK, {"role": "wizard", "content": "a"}], "turn 8: unknown role 'wizard'"),
        ([{"role": "user", "content": None}], "turn 0: expected text, found NoneType"),
        ([{"role": "user", "content": b"\xff"}], "turn 0: not valid UTF-8"),
        (
            [{"role": "assistant", "content": "a", "tool_calls": []}],
            "turn 0: tool_calls: a guard judges text",
        ),
    ],
)
def test_what_is_no_dialogue_is_refused(messages, message):
    with pytest.raises(InputError) as caught:
        Dialogue.of(messages)
    assert str(caught.value).startswith(message)


def test_what_is_taken_for_a_dialogue():
    assert conversation_of(TALK) == conversation_of(Dialogue.of(TALK)) == Dialogue.of(TALK)
    assert conversation_of(talk(("user", "a"), ("user", "b"))) == Dialogue.of(
        talk(("user", "a"), ("user", "b"))
    )
    assert conversation_of(("a", "b")) == conversation_of(Conversation("a", "b")) == Conversation("a", "b")
    assert Dialogue.of([{"role": "user", "content": "a", "name": "Ada"}]).turns[0].content == "a"
