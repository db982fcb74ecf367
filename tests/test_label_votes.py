"""The majority of votes, and agreement: by their definitions, by hand, and on published examples."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_edge.label.agreement import fleiss_kappa, krippendorff_alpha
from aegis_edge.label.errors import LabelError
from aegis_edge.label.votes import Abstention, Opinion, Vote, default_quorum, majority

SAFE, UNSAFE = Vote("safe"), Vote("unsafe")
FAILED = Abstention("http", "HTTP status 500")

opinions = st.sampled_from([SAFE, UNSAFE, FAILED, Abstention("nonsense", "x"), Abstention("timeout", "x")])
juries = st.lists(opinions, min_size=1, max_size=9)


def jury(*cast: Opinion) -> dict[str, Opinion]:
    return {f"judge-{number}": opinion for number, opinion in enumerate(cast)}


@pytest.mark.parametrize(
    ("cast", "quorum", "label", "how"),
    [
        ([SAFE, SAFE, SAFE], 2, "safe", "unanimous"),
        ([SAFE, SAFE, UNSAFE], 2, "safe", "majority"),
        ([UNSAFE, SAFE, UNSAFE], 2, "unsafe", "majority"),
        ([UNSAFE, UNSAFE, FAILED], 2, "unsafe", "unanimous"),
        ([UNSAFE, SAFE, FAILED], 2, None, "tie"),
        ([UNSAFE, FAILED, FAILED], 2, None, "quorum"),
        ([UNSAFE, FAILED, FAILED], 1, "unsafe", "unanimous"),
        ([FAILED, FAILED, FAILED], 1, None, "quorum"),
        ([SAFE, SAFE, UNSAFE, UNSAFE], 3, None, "tie"),
        ([SAFE], 1, "safe", "unanimous"),
        ([], 1, None, "quorum"),
    ],
)
def test_outcomes(cast: list[Opinion], quorum: int, label: str | None, how: str) -> None:
    outcome = majority(jury(*cast), quorum)
    assert (outcome.label, outcome.how) == (label, how)


def test_the_default_quorum_is_more_than_half() -> None:
    assert [default_quorum(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


def test_no_quorum_is_refused() -> None:
    with pytest.raises(LabelError, match="a quorum of 0 votes is none"):
        majority({}, 0)


@given(juries, st.integers(1, 9))
def test_the_majority_is_counted_over_votes_alone(cast: list[Opinion], quorum: int) -> None:
    """Against another way to say it: the sign of a sum."""
    outcome = majority(jury(*cast), quorum)
    votes = [opinion for opinion in cast if isinstance(opinion, Vote)]
    balance = sum(1 if vote.label == "unsafe" else -1 for vote in votes)
    if len(votes) < quorum:
        assert (outcome.label, outcome.how) == (None, "quorum")
    elif balance == 0:
        assert (outcome.label, outcome.how) == (None, "tie")
    else:
        assert outcome.label == ("unsafe" if balance > 0 else "safe")
        assert outcome.how == ("unanimous" if abs(balance) == len(votes) else "majority")


@given(juries, st.integers(1, 9), st.lists(opinions.filter(lambda o: isinstance(o, Abstention)), max_size=5))
def test_a_judge_that_fails_changes_nothing(cast: list[Opinion], quorum: int, failed: list[Opinion]) -> None:
    assert majority(jury(*cast, *failed), quorum) == majority(jury(*cast), quorum)


@given(juries, st.integers(1, 9), st.randoms())
def test_the_order_of_judges_does_not_matter(cast: list[Opinion], quorum: int, random: object) -> None:
    turned = list(cast)
    random.shuffle(turned)  # type: ignore[attr-defined]
    assert majority(jury(*turned), quorum) == majority(jury(*cast), quorum)


@given(juries, st.integers(1, 9))
def test_swapped_votes_swap_the_label(cast: list[Opinion], quorum: int) -> None:
    swap = {"safe": UNSAFE, "unsafe": SAFE}
    swapped = [swap[opinion.label] if isinstance(opinion, Vote) else opinion for opinion in cast]
    one, other = majority(jury(*cast), quorum), majority(jury(*swapped), quorum)
    assert one.how == other.how and {one.label, other.label} in ({None}, {"safe", "unsafe"})


def test_a_failure_taken_for_a_vote_would_show() -> None:
    """The inverse: with failures counted as `safe`, or as `unsafe`, the outcome is another one."""
    cast = [UNSAFE, FAILED, FAILED]
    true = majority(jury(*cast), 2)
    for wrong in (SAFE, UNSAFE):
        counted = [wrong if isinstance(opinion, Abstention) else opinion for opinion in cast]
        assert majority(jury(*counted), 2) != true


def test_categories_need_more_than_half_of_the_unsafe_votes() -> None:
    votes = [
        Vote("unsafe", ("Malware", "Profanity")),
        Vote("unsafe", ("Profanity", "Profanity")),
        Vote("unsafe", ("Profanity", "Malware", "Threat")),
        SAFE,
    ]
    assert majority(jury(*votes), 2).categories == ("Profanity", "Malware")
    assert majority(jury(Vote("unsafe", ("Threat",)), UNSAFE), 2).categories == ()
    assert majority(jury(SAFE, SAFE, Vote("unsafe", ("Threat",))), 2).categories == ()


# Fleiss (1971) as the example is most often printed: 10 subjects, 14 raters, 5 categories, kappa 0.210.
PRINTED = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def test_fleiss_kappa_of_the_printed_example() -> None:
    rows = [{str(label): count for label, count in enumerate(row)} for row in PRINTED]
    assert fleiss_kappa(rows) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_by_hand() -> None:
    """4 rows, 3 votes each: P = (1 + 1 + 1/3 + 1/3) / 4 = 2/3, p = 7/12 and 5/12, Pe = 74/144."""
    rows = [{"safe": 3}, {"unsafe": 3}, {"safe": 2, "unsafe": 1}, {"safe": 2, "unsafe": 1}]
    expected = (Fraction(2, 3) - Fraction(74, 144)) / (1 - Fraction(74, 144))
    assert fleiss_kappa(rows) == pytest.approx(float(expected))


def test_fleiss_kappa_of_unequal_numbers_by_hand() -> None:
    """Fleiss and Cuzick: x of n unsafe: 2 of 2, 0 of 3, 1 of 3, 2 of 4. p = 5/12, m = 3, sum n p q = 2/3 + 1.
    kappa = 1 - (5/3) / (4 * 2 * 35/144)."""
    rows = [
        {"unsafe": 2},
        {"safe": 3},
        {"unsafe": 1, "safe": 2},
        {"unsafe": 2, "safe": 2},
    ]
    expected = 1 - Fraction(5, 3) / (4 * 2 * Fraction(35, 144))
    assert fleiss_kappa(rows) == pytest.approx(float(expected))
    assert fleiss_kappa([*rows, {"unsafe": 1}, {}]) == pytest.approx(float(expected))  # no pair in them


def units(*coders: str) -> list[Counter[str]]:
    """Counts a unit from a string a coder; a dot is no value."""
    return [Counter(value for value in unit if value != ".") for unit in zip(*coders, strict=True)]


@pytest.mark.parametrize(
    ("coders", "alpha"),
    [
        # Krippendorff (2011), A: two observers, binary.
        (("0100000010", "1110010000"), 0.095),
        # B: two observers, nominal.
        (("aabbdcccedda", "babbbccceddd"), 0.692),
        # C: four observers, values missing.
        (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
        # The example with three coders that encyclopaedias print.
        ((".....34121133.3", "1.213343.......", "..21344.21133.4"), 0.691),
    ],
)
def test_krippendorff_alpha_of_published_examples(coders: tuple[str, ...], alpha: float) -> None:
    assert krippendorff_alpha(units(*coders)) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("measure", [fleiss_kappa, krippendorff_alpha])
@pytest.mark.parametrize(
    "rows", [[], [{}], [{"safe": 1}, {"unsafe": 1}], [{"safe": 3}, {"safe": 2}]], ids=str
)
def test_undefined_agreement_is_none(measure: object, rows: list[dict[str, int]]) -> None:
    assert measure(rows) is None  # type: ignore[operator]


counts = st.lists(
    st.fixed_dictionaries({"safe": st.integers(0, 4), "unsafe": st.integers(0, 4)}), min_size=1, max_size=12
)


@pytest.mark.parametrize("measure", [fleiss_kappa, krippendorff_alpha])
@given(rows=counts)
def test_agreement_is_at_most_one_and_one_only_without_a_split(
    measure: object, rows: list[dict[str, int]]
) -> None:
    value = measure(rows)  # type: ignore[operator]
    if value is not None:
        split = any(row["safe"] and row["unsafe"] for row in rows)
        assert value < 1 if split else value == pytest.approx(1)
        swapped = [{"safe": row["unsafe"], "unsafe": row["safe"]} for row in rows]
        assert measure(swapped) == pytest.approx(value)  # type: ignore[operator]
