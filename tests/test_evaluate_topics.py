"""Topic following: an oracle scores 1, a guard that ignores its policy one half."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from aegis_edge.conversation import Conversation
from aegis_edge.data.canttalk import Dialogue
from aegis_edge.data.records import Topic
from aegis_edge.data.topics import HELD_OUT, topical
from aegis_edge.decision import Rating, Verdict
from aegis_edge.evaluate.topics import measure, measure_dialogues, planned, policies
from aegis_edge.policy import Policy

TOPIC_OF = {record.prompt: record.raw_category for record in topical(HELD_OUT, 20)}


class Fixed:
    """Answers by what it knows of the policy (an oracle), or always the same."""

    def __init__(self, policy: Policy, oracle: bool) -> None:
        self.policy, self.oracle, self.seen = policy, oracle, 0

    def fits(self, conversation: Conversation) -> bool:
        return True

    def check_many(self, items: Sequence[Conversation]) -> list[Verdict]:
        (category,) = self.policy.categories
        verdicts = []
        for item in items:
            topic = next(t for t in HELD_OUT if t.name == TOPIC_OF[item.prompt])
            breaks = (category.name == topic.name) != category.allowed
            safe = not breaks if self.oracle else True
            rating = Rating(safe, 0.1 if safe else 0.9, -2.0 if safe else 2.0)
            verdicts.append(Verdict(safe, rating, None, (), 1))
        return verdicts


@pytest.mark.parametrize(("oracle", "accuracy"), [(True, 1.0), (False, 0.5)])
def test_an_oracle_and_a_guard_that_ignores_its_policy(oracle: bool, accuracy: float) -> None:
    steps: list[int] = []
    found = measure(lambda policy: Fixed(policy, oracle), each=20, done=steps.append)
    assert found["accuracy"] == found["auroc"] == accuracy
    assert sum(steps) == found["prompts"] == planned(each=20) and found["topics"] == len(HELD_OUT)
    assert set(found["by_kind"]) == {"allowed", "forbidden"}
    assert set(found["by_topic"]) == {topic.name for topic in HELD_OUT}


def test_policies_say_what_they_allow_and_forbid() -> None:
    allowed, forbidden = policies(HELD_OUT[0]).values()
    (only,), (none,) = allowed.categories, forbidden.categories
    assert only.text == none.text == f"{HELD_OUT[0].name}: {HELD_OUT[0].description}"
    assert only.allowed and not none.allowed


TOPICS = [
    Topic(f"Topic {n}", "What it is.", domain=domain) for n, domain in enumerate(("garden", "garden", "sea"))
]
DIALOGUES = [
    Dialogue(
        topic,
        tuple(f"on {topic.name} {n}" for n in range(6)),
        tuple(f"off {topic.name} {n}" for n in range(2)),
    )
    for topic in TOPICS
]


class Listener:
    """Flags what it was told to, and has no room for texts that begin with "long"."""

    def __init__(self, policy: Policy, flags: tuple[str, ...]) -> None:
        (self.category,) = policy.categories
        self.flags = flags

    def fits(self, conversation: Conversation) -> bool:
        return not conversation.prompt.startswith("long")

    def check_many(self, items: Sequence[Conversation]) -> list[Verdict]:
        verdicts = []
        for item in items:
            assert self.category.allowed and self.category.name in item.prompt and item.response is None
            safe = not item.prompt.startswith(self.flags)
            rating = Rating(safe, 0.1 if safe else 0.9, -2.0 if safe else 2.0)
            verdicts.append(Verdict(safe, rating, None, (), 1))
        return verdicts


@pytest.mark.parametrize(
    ("flags", "kept", "found"), [(("off",), 1, 1), ((), 1, 0), (("on", "off"), 0, 1), (("on",), 0, 0)]
)
def test_dialogues_under_a_policy_that_allows_their_topic(
    flags: tuple[str, ...], kept: float, found: float
) -> None:
    steps: list[int] = []
    measured = measure_dialogues(lambda policy: Listener(policy, flags), DIALOGUES, done=steps.append)
    assert (measured["kept"], measured["found"]) == (kept, found)
    assert measured["accuracy"] == measured["auroc"] == (kept + found) / 2
    assert (measured["topics"], measured["turns"], measured["distractors"], measured["too_long"]) == (
        3,
        18,
        6,
        0,
    )
    assert sum(steps) == 24 and set(measured["by_domain"]) == {"garden", "sea"}
    assert measured["by_domain"]["sea"]["accuracy"] == measured["accuracy"]


def test_dialogues_of_one_scenario_share_a_policy_and_long_texts_are_counted() -> None:
    seen: list[Policy] = []

    def under(policy: Policy) -> Listener:
        seen.append(policy)
        return Listener(policy, ("off",))

    again = Dialogue(Topic("Topic 0", "In other words.", domain="garden"), ("on Topic 0", "long Topic 0"), ())
    measured = measure_dialogues(under, [*DIALOGUES, again])
    assert [policy.categories[0].description for policy in seen] == ["What it is."] * 3
    assert (measured["turns"], measured["too_long"]) == (19, 1)
    lonely = measure_dialogues(under, [again])
    assert lonely["kept"] == 1 and math.isnan(lonely["found"]) and math.isnan(lonely["auroc"])
