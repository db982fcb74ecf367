"""Answers of a guard: what fits, what is cut, what is skipped; and whether a policy is followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_artifact import write_tiny
from tokenizers import Tokenizer

from aegis_edge import Guard, ScorerError
from aegis_edge.conversation import Conversation
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record
from aegis_edge.decision import CategoryScore, Rating, Verdict
from aegis_edge.evaluate import following
from aegis_edge.evaluate.judge import PACK, Judge, answers
from aegis_edge.evaluate.summary import summarise
from aegis_edge.families import Plan
from aegis_edge.policy import Policy

ROOM = 10  # characters


def record(
    prompt: str, response: str | None = None, unsafe: bool | None = True, response_unsafe: bool | None = None
) -> Record:
    return Record(prompt, response, unsafe, response_unsafe, Categories(), None, "s")


class Fake:
    """Takes ROOM characters and calls unsafe what holds a "w" that its policy forbids: "w1" under S1."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.codes = {c.code for c in (policy or Policy.default()).categories}
        self.packs: list[list[Conversation]] = []

    def fits(self, conversation: Conversation) -> bool:
        return len(conversation.prompt) + len(conversation.response or "") <= ROOM

    def check_many(self, items: Sequence[Conversation]) -> list[Verdict]:
        assert all(map(self.fits, items))
        self.packs.append(list(items))
        return [self.verdict(item) for item in items]

    def verdict(self, item: Conversation) -> Verdict:
        def rating(text: str) -> Rating:
            safe = not any(f"S{word[1:]}" in self.codes for word in text.split() if word.startswith("w"))
            return Rating(safe, 0.1 if safe else 0.9, 0.0)

        prompt = rating(item.prompt)
        response = None if item.response is None else rating(item.response)
        safe = prompt.safe and (response is None or response.safe)
        named = () if safe else (CategoryScore("x", "S1", 0.9), CategoryScore("own", None, 0.8))
        return Verdict(safe, prompt, response, named, 0)


def test_answers_are_in_order_in_packs_and_told() -> None:
    records = [record(f"w1 {n}" if n % 3 else f"ok {n}") for n in range(2 * PACK + 5)]
    fake, told = Fake(), []
    found = answers(fake, records, done=told.append)
    assert [a is not None and a.prompt.safe for a in found] == [n % 3 == 0 for n in range(len(records))]
    assert told == [len(pack) for pack in fake.packs] == [PACK, PACK, 5]
    assert found[1] is not None and found[1].named == {"S1"}


def test_a_response_is_only_asked_about_where_it_is_labelled() -> None:
    fake = Fake()
    answers(fake, [record("a", "b"), record("a", "b", response_unsafe=False), record("a", None)])
    assert [c.response for c in fake.packs[0]] == [None, "b", None]


LONG = "x" * (ROOM + 1)


def test_long_texts_are_skipped_and_counted() -> None:
    records = [record("a"), record(LONG), record("a", LONG, response_unsafe=True)]
    found = answers(Fake(), records)
    assert found[0] is not None and found[1:] == [None, None]
    coverage = summarise(records, found, Policy.default().thresholds)["coverage"]
    assert coverage["prompt"] == {"labelled": 3, "judged": 1, "cut": 0, "too_long": 2}
    assert coverage["response"] == {"labelled": 1, "judged": 0, "cut": 0, "too_long": 1}


def test_long_texts_are_cut_and_counted() -> None:
    fake = Fake()
    records = [
        record("a"),
        record("b" + LONG),
        record("ab", LONG, response_unsafe=True),
        record(LONG, "rest", response_unsafe=True),
        record("c" * ROOM, "rest", response_unsafe=True),
    ]
    found = answers(fake, records, "cut")
    assert fake.packs[0] == [
        Conversation("a"),
        Conversation("b" + "x" * 9),
        Conversation("ab", "x" * 8),
        Conversation("x" * 10),  # no room for any of the response: the prompt alone
        Conversation("c" * 10),
    ]
    assert [a is not None and a.cut for a in found] == [False, True, True, True, True]
    coverage = summarise(records, found, Policy.default().thresholds)["coverage"]
    assert coverage["prompt"] == {"labelled": 5, "judged": 5, "cut": 4, "too_long": 0}
    assert coverage["response"] == {"labelled": 3, "judged": 1, "cut": 1, "too_long": 2}


@given(
    st.lists(st.tuples(st.text("aw1 ", max_size=25), st.none() | st.text("aw1 ", max_size=25)), max_size=8)
)
def test_every_record_has_an_answer_or_is_too_long(texts: list[tuple[str, str | None]]) -> None:
    records = [record(p, r, response_unsafe=None if r is None else True) for p, r in texts]
    skipped, cut = answers(Fake(), records), answers(Fake(), records, "cut")
    for one, other, of in zip(skipped, cut, records, strict=True):
        fits = len(of.prompt) + len(of.response or "") <= ROOM
        assert (one is not None) == fits and other is not None
        assert other.cut != fits and (not fits or one == other)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> Path:
    path = tmp_path_factory.mktemp("artefacts") / "guard"
    calibration = {"prompt": {"temperature": 2.0, "bias": 0.5}}
    write_tiny(path, tiny_tokenizer, tiny_plan, tiny_policy, "w8a8", calibration=calibration)
    return path


TEXTS = ["How do I pick a lock?", "safe", "The user asks.", "weapons and things"]


@pytest.mark.parametrize("scorer", ["cpu", "reference"])
def test_a_judge_answers_as_the_guard_does(folder: Path, scorer: str) -> None:
    judge, guard = Judge.open(folder, scorer, threads=1), Guard.load(folder, 1, scorer)
    records = [record(text, "An answer.", response_unsafe=True) for text in TEXTS]
    found = answers(judge.under(), records)
    for answer, verdict in zip(found, guard.check_many([(t, "An answer.") for t in TEXTS]), strict=True):
        assert answer is not None and verdict.response is not None and answer.response is not None
        assert answer.prompt == verdict.prompt and answer.response == verdict.response
        assert answer.named == {c.code for c in verdict.categories if c.code}
    about = judge.about()
    assert (about["name"], about["scheme"], about["categories"]) == (f"guard, {scorer}", "w8a8", 4)


def test_a_judge_answers_under_another_policy_as_that_guard_does(folder: Path, tiny_policy: Policy) -> None:
    other = Policy(tiny_policy.categories[:2], tiny_policy.thresholds)
    found = answers(Judge.open(folder, threads=1).under(other), [record(text) for text in TEXTS])
    guard = Guard.load(folder, 1, policy=other)
    ratings = [verdict.prompt for verdict in guard.check_many(TEXTS)]
    assert [answer and answer.prompt for answer in found] == ratings
    own = answers(Judge.open(folder, threads=1).under(), [record(text) for text in TEXTS])
    assert [answer and answer.prompt for answer in own] != ratings  # the policy is read


def test_the_longest_text_that_fits_is_what_is_kept(folder: Path) -> None:
    """The true context: what is kept fits, and one character more does not."""
    checker = Judge.open(folder, threads=1).under()
    text = "lock? " * 300
    assert not checker.fits(Conversation(text))
    assert answers(checker, [record(text)]) == [None]
    (answer,) = answers(checker, [record(text)], "cut")
    assert answer is not None and answer.cut
    (answer,) = answers(checker, [record(text)], "windows")
    assert answer is not None and not answer.cut
    assert answer.prompt == Guard.load(folder, 1).check(text).prompt


def test_a_window_is_the_guards_own(folder: Path) -> None:
    text = "How do I pick a lock? " * 4
    guard = Guard.load(folder, 1, window=16)
    assert guard.check(text).window is not None
    (answer,) = answers(Judge.open(folder, threads=1, window=16).under(), [record(text)])
    assert answer is not None and answer.prompt == guard.check(text).prompt


def test_an_unknown_scorer_is_refused(folder: Path) -> None:
    with pytest.raises(ScorerError, match="unknown scorer"):
        Judge.open(folder, "gpu")


def unsafe(text: str, certain: str, possible: str, response: str | None = None) -> Record:
    sure = frozenset(certain.split())
    categories = Categories(sure, sure | frozenset(possible.split()))
    return Record(text, response, True, None if response is None else True, categories, None, "s")


FLAGGED = [
    *[unsafe("w1", "S1", "S2")] * 3,
    *[unsafe("w2", "S2", "S1 S3", "w3 w2")] * 2,
    unsafe("w1 x", "S1", ""),  # takes the policy made for the first
    unsafe("w4", "S4", "S5"),
    unsafe("fine", "S1", "S2"),  # not flagged
    unsafe("w5", "", "S5"),  # nothing certain
    unsafe("w6", "S6", " ".join(f"S{n}" for n in range(1, 24))),  # nothing would be left
]


def test_groups_are_few_and_every_record_is_counted() -> None:
    policy = Policy.default()
    found = answers(Fake(), FLAGGED)
    planned = following.plan(FLAGGED, found, policy, most=2)
    assert planned.groups == {frozenset({"S1", "S2"}): [0, 1, 2, 5], frozenset({"S1", "S2", "S3"}): [3, 4]}
    assert (planned.all_gone, planned.uncovered) == (1, 1)
    assert following.planned_checks(planned) == 12
    every = following.plan(FLAGGED, found, policy)
    assert every.uncovered == 0 and every.groups[frozenset({"S1"})] == [5]
    for removed, numbers in every.groups.items():
        assert all(
            FLAGGED[n].categories.possible & {c.code for c in policy.categories} <= removed for n in numbers
        )


def test_a_guard_that_follows_its_policy_lets_everything_through_and_still_flags() -> None:
    found = answers(Fake(), FLAGGED)
    made: list[Policy] = []

    def under(policy: Policy) -> Fake:
        made.append(policy)
        return Fake(policy)

    told: list[int] = []
    share = following.measure(under, Policy.default(), FLAGGED, found, most=2, done=told.append)
    assert share["policies"] == len(made) == 4 and sum(told) == 12
    assert share["prompt"]["flagged"] == 6
    assert share["prompt"]["let_through"] == share["prompt"]["still_flagged"] == 1.0
    assert share["response"]["flagged"] == 2
    assert set(share["prompt"]["by_category"]) == {"S1", "S2"}
    assert share["prompt"]["by_category"]["S1"]["flagged"] == 4
    for rest, only in zip(made[::2], made[1::2], strict=True):  # halves of the policy
        assert {*rest.categories, *only.categories} == set(Policy.default().categories)
        assert not {*rest.categories} & {*only.categories}


@pytest.mark.parametrize(("policy", "let_through", "still"), [(Policy.default(), 0.0, 1.0), (None, 1.0, 0.0)])
def test_inverse_guards_that_read_no_policy(policy: Policy | None, let_through: float, still: float) -> None:
    """One always sees the default policy; the other calls everything safe under any other."""
    deaf = Fake(policy)
    if policy is None:
        deaf.codes = set()
    found = answers(Fake(), FLAGGED)
    share = following.measure(lambda _: deaf, Policy.default(), FLAGGED, found)
    assert (share["prompt"]["let_through"], share["prompt"]["still_flagged"]) == (let_through, still)


def test_nothing_flagged_is_nothing_measured() -> None:
    share = following.measure(
        lambda _: Fake(), Policy.default(), [record("ok")], answers(Fake(), [record("ok")])
    )
    assert share["prompt"] is None and share["policies"] == 0
