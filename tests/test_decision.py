from __future__ import annotations

import math

import numpy as np
import pytest

from aegis_edge.decision import Calibration, Decider, read_calibration
from aegis_edge.errors import ArtifactError, ScorerError
from aegis_edge.policy import Category, Policy, Thresholds

PLAIN = read_calibration({})


def logits(*rows):
    return np.array(rows, np.float32)


@pytest.fixture
def decider(tiny_plan, tiny_policy):
    return Decider(tiny_plan, tiny_policy, PLAIN)


def test_margin_and_probability_come_from_the_questions_own_rows(decider):
    ratings = decider.ratings(("prompt", "response"), logits([1, 3, 9, 9, 9, 9], [9, 9, 2, 1.5, 9, 9]))
    assert (ratings["prompt"].margin, ratings["response"].margin) == (2.0, -0.5)
    assert ratings["prompt"].probability == pytest.approx(1 / (1 + math.exp(-2)))
    assert ratings["response"].probability == pytest.approx(1 / (1 + math.exp(0.5)))
    assert (ratings["prompt"].safe, ratings["response"].safe) == (False, True)


def test_calibration_is_a_sigmoid_of_the_scaled_margin():
    calibration = Calibration(temperature=2.0, bias=0.5)
    assert calibration.probability(3.0) == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert calibration.probability(-1.0) == 0.5


@pytest.mark.parametrize("margin", [1e4, 800.0, 38.0, 0.0, -38.0, -800.0, -1e4])
def test_no_margin_overflows(margin):
    p = Calibration().probability(margin)
    assert 0 <= p <= 1 and (p > 0.5) == (margin > 0)
    assert p + Calibration().probability(-margin) == pytest.approx(1)


def test_at_the_threshold_it_is_unsafe(tiny_plan, tiny_policy):
    even = logits([0, 0, 0, 0, 0, 0])
    decider = Decider(tiny_plan, tiny_policy, PLAIN)
    assert not decider.ratings(("prompt",), even)["prompt"].safe
    lenient = Policy(tiny_policy.categories, Thresholds(prompt=0.51, response=0.49))
    ratings = Decider(tiny_plan, lenient, PLAIN).ratings(("prompt", "response"), even.repeat(2, axis=0))
    assert (ratings["prompt"].safe, ratings["response"].safe) == (True, False)


def test_violated_categories_most_probable_first_each_at_its_own_threshold(decider):
    rows = logits(*([0, 0, 0, 0, 0, margin] for margin in (0.1, -0.7, 2.0, -0.1)))
    scores = decider.categories(rows)
    assert [(s.name, s.code) for s in scores] == [("Locks", "X1"), ("Violence", "S1"), ("PII/Privacy", "S9")]
    assert scores[2].probability == pytest.approx(1 / (1 + math.exp(0.7)))  # 0.33: over its threshold of 0.3


def test_equal_categories_keep_the_policys_order(decider):
    scores = decider.categories(logits(*[[0, 0, 0, 0, 0, 1]] * 4))
    assert [s.name for s in scores] == ["Violence", "PII/Privacy", "Locks", "Weather"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", range(6))
def test_logits_that_are_not_finite_are_never_a_verdict(decider, value, row):
    bad = np.zeros((4, 6), np.float32)
    bad[1, row] = value
    question = ("prompt", "response", "category")[row // 2]
    message = f"logits that are not finite for the {question}; no verdict can be given"
    with pytest.raises(ScorerError, match=message):
        if question == "category":
            decider.categories(bad)
        else:
            decider.ratings((question, question), bad[:2])


def test_both_infinite_is_not_finite_either(decider):
    with pytest.raises(ScorerError, match="not finite"):
        decider.ratings(("prompt",), logits([np.inf, np.inf, 0, 0, 0, 0]))


def test_a_missing_row_is_refused(decider):
    with pytest.raises(ScorerError, match="the scorer returned 1 rows of logits for 2 slots"):
        decider.ratings(("prompt", "response"), logits([0] * 6))
    with pytest.raises(ScorerError, match="the scorer returned 3 rows for 4 categories"):
        decider.categories(logits(*[[0] * 6] * 3))


def test_a_plan_of_another_policy_is_refused(tiny_plan):
    with pytest.raises(ArtifactError, match="4 leaves for a policy of 23 categories"):
        Decider(tiny_plan, Policy.default(), PLAIN)


def test_calibration_of_a_manifest():
    found = read_calibration({"prompt": {"temperature": 2, "bias": -1}})
    assert found["prompt"] == Calibration(2.0, -1.0)
    assert found["response"] == found["category"] == Calibration()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prompt": {"temperature": 0, "bias": 0}}, "temperature 0.0, bias 0.0 are no scaling"),
        ({"prompt": {"temperature": -1, "bias": 0}}, "are no scaling"),
        ({"prompt": {"temperature": float("nan"), "bias": 0}}, "are no scaling"),
        ({"prompt": {"temperature": 1, "bias": float("inf")}}, "are no scaling"),
        ({"prompt": {"temperature": 1}}, "every question needs a temperature and a bias"),
        ({"prompt": {"temperature": "x", "bias": 0}}, "every question needs a temperature and a bias"),
        ({"prompt": None}, "every question needs a temperature and a bias"),
        ({"mood": {"temperature": 1, "bias": 0}}, r"unknown questions \['mood'\]"),
    ],
)
def test_a_malformed_calibration_is_refused(data, message):
    with pytest.raises(ArtifactError, match=message):
        read_calibration(data)


def judged(tiny_plan, policy: Policy, verdict: float, *leaves: float):
    decider = Decider(tiny_plan, policy, PLAIN)
    rating = decider.ratings(("prompt",), logits([0, verdict, 0, 0, 0, 0]))["prompt"]
    return decider.by_policy(rating, logits(*([0, 0, 0, 0, 0, leaf] for leaf in leaves)))


def test_a_policy_decides_by_what_it_names(tiny_plan, tiny_policy):
    """Violence, Privacy (threshold 0.3), and two custom categories."""
    policy = Policy(tiny_policy.categories, decided_by="categories")
    rating, claims = judged(
        tiny_plan, policy, 3.0, -2.0, -2.0, -2.0, -2.0
    )  # unsafe, but nothing that is named
    assert rating.safe and claims == () and rating.probability == pytest.approx(1 / (1 + math.exp(2)))
    assert rating.margin == 3.0  # as it was read
    rating, claims = judged(tiny_plan, policy, 3.0, 2.0, -2.0, -2.0, -2.0)
    assert not rating.safe and [c.name for c in claims] == ["Violence"]
    assert rating.probability == pytest.approx(1 / (1 + math.exp(-2)))
    rating, claims = judged(tiny_plan, policy, -3.0, 2.0, -2.0, -2.0, -2.0)  # a hazard needs the verdict too
    assert rating.safe and claims == () and rating.probability < 0.2
    rating, claims = judged(tiny_plan, policy, -3.0, -2.0, -2.0, -2.0, 1.0)  # a custom category does not
    assert not rating.safe and [c.name for c in claims] == ["Weather"]
    rating, claims = judged(tiny_plan, policy, 1.0, 0.5, -0.5, 3.0, -2.0)  # 0.38 is over Privacy's threshold
    assert [c.name for c in claims] == ["Locks", "Violence", "PII/Privacy"]


def test_what_no_allowed_topic_claims_is_off_topic(tiny_plan):
    """Two allowed topics, the second claiming from 0.2 on, a forbidden one and a hazard."""
    policy = Policy(
        (
            Category("Chess", description="The game.", allowed=True),
            Category("Dogs", description="Keeping them.", threshold=0.2, allowed=True),
            Category("Cats", description="Keeping them."),
            Category.of("Violence"),
        )
    )
    rating, claims = judged(tiny_plan, policy, -3.0, 2.0, -4.0, -3.0, -2.0)
    assert rating.safe and claims == () and rating.probability == pytest.approx(1 / (1 + math.exp(2)))
    rating, claims = judged(tiny_plan, policy, -3.0, -4.0, -1.0, -3.0, -2.0)  # 0.27 is over Dogs' threshold
    assert rating.safe and claims == ()
    rating, claims = judged(tiny_plan, policy, -3.0, -1.0, -2.0, -3.0, -2.0)
    assert not rating.safe and [(c.name, c.code) for c in claims] == [("Off topic", None)]
    assert rating.probability == claims[0].probability == pytest.approx(1 / (1 + math.exp(-1)))
    rating, claims = judged(tiny_plan, policy, 3.0, 4.0, -4.0, 1.0, 2.0)  # on topic, and yet forbidden
    assert not rating.safe and [c.name for c in claims] == ["Violence", "Cats"]


def test_custom_categories_have_a_scale_of_their_own(tiny_plan, tiny_policy):
    scaled = read_calibration({"custom_category": {"temperature": 1.0, "bias": -5.0}})
    decider = Decider(tiny_plan, tiny_policy, scaled)
    (first, second) = (s.name for s in decider.categories(logits(*[[0, 0, 0, 0, 0, 1.0]] * 4)))
    assert {first, second} == {"Violence", "PII/Privacy"}
    assert read_calibration({"category": {"temperature": 2.0, "bias": 1.0}})["custom_category"].bias == 1.0
