"""Topic following: an oracle scores 1, a guard that ignores its policy one half."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aegis_edge.conversation import Conversation
from aegis_edge.data.topics import HELD_OUT, topical
from aegis_edge.decision import Rating, Verdict
from aegis_edge.evaluate.topics import measure, planned, policies
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
