"""Figures against scikit-learn's and against their definitions; intervals and flips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs

from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record
from aegis_edge.decision import Rating
from aegis_edge.evaluate import curves
from aegis_edge.evaluate.compare import compare, f1_interval
from aegis_edge.evaluate.judge import Answer
from aegis_edge.evaluate.metrics import ece_by_chance, expected_calibration_error
from aegis_edge.evaluate.summary import attribution, finite, summarise
from aegis_edge.policy import Thresholds

# With ties, and with probabilities on the thresholds and bin edges.
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.6, 0.9, 1.0]) | st.floats(0, 1), st.booleans()),
    min_size=1,
)


def split(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in rows]), np.array([t for _, t in rows])


@given(ROWS)
def test_figures_are_scikit_learns(rows: list[tuple[float, bool]]) -> None:
    p, t = split(rows)
    found = curves.figures(p, t, 0.5)
    said = p >= 0.5
    assert found["f1"] == pytest.approx(theirs.f1_score(t, said, zero_division=0.0))
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(t, said))
    if said.any():
        assert found["precision"] == pytest.approx(theirs.precision_score(t, said))
    if t.any():
        assert found["recall"] == pytest.approx(theirs.recall_score(t, said))
        assert found["auprc"] == pytest.approx(theirs.average_precision_score(t, p))
    if t.any() and not t.all():
        assert found["auroc"] == pytest.approx(theirs.roc_auc_score(t, p))


@given(ROWS, st.sampled_from([0.01, 0.05, 0.5, 0.9, 0.95, 1.0]))
def test_fixed_points_are_the_best_of_all_thresholds(rows: list[tuple[float, bool]], at: float) -> None:
    p, t = split(rows)
    fpr = curves.false_positive_rate_at_recall(p, t, at)
    recall = curves.recall_at_false_positive_rate(p, t, at)
    if t.all() or not t.any():
        assert math.isnan(fpr) and math.isnan(recall)
        return
    points = [((p >= x)[~t].mean(), (p >= x)[t].mean()) for x in [*p, 2.0]]
    assert fpr == pytest.approx(min(f for f, r in points if r >= at - 1e-12))
    assert recall == pytest.approx(max(r for f, r in points if f <= at + 1e-12))


@given(ROWS)
def test_the_calibration_error_is_the_reliability_plots(rows: list[tuple[float, bool]]) -> None:
    p, t = split(rows)
    bins = curves.reliability(p, t)
    assert sum(b.count for b in bins) == len(p)
    assert all(b.low - 1e-9 <= b.probability <= b.low + 1 / curves.BINS + 1e-9 for b in bins)
    error = sum(b.count * abs(b.probability - b.unsafe) for b in bins) / len(p)
    assert expected_calibration_error(p, t) == pytest.approx(error)


def test_inverse_a_guard_that_is_right_and_sure_has_perfect_figures_and_a_wrong_one_the_worst() -> None:
    t = np.array([True, False, True, False])
    right, wrong = curves.figures(t.astype(float), t, 0.5), curves.figures(1.0 - t, t, 0.5)
    assert (right["f1"], right["auroc"], right["auprc"], right["ece"]) == (1, 1, 1, 0)
    assert (wrong["f1"], wrong["auroc"], wrong["ece"]) == (0, 0, 1)
    assert right["fpr_at_recall"]["0.95"] == 0 and wrong["fpr_at_recall"]["0.95"] == 1


def slow_interval(t: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The bootstrap by drawing rows."""
    rng = np.random.default_rng(1)
    differences = []
    for _ in range(1500):
        rows = rng.integers(0, len(t), len(t))
        f1 = [theirs.f1_score(t[rows], said[rows], zero_division=0.0) for said in (a, b)]
        differences.append(f1[1] - f1[0])
    return np.quantile(differences, [0.025, 0.975])


def test_drawing_counts_is_drawing_rows() -> None:
    rng = np.random.default_rng(0)
    t = rng.random(120) < 0.4
    a, b = t ^ (rng.random(120) < 0.3), t ^ (rng.random(120) < 0.15)
    assert f1_interval(t, a, b) == pytest.approx(slow_interval(t, a, b), abs=0.03)


def test_the_interval_is_seeded_and_covers_no_difference_only_where_there_is_none() -> None:
    rng = np.random.default_rng(2)
    t = rng.random(400) < 0.5
    same = t ^ (rng.random(400) < 0.2)
    assert f1_interval(t, same, same) == (0.0, 0.0)
    low, high = f1_interval(t, ~t, t)
    assert low == high == 1.0
    better = same.copy()
    better[:100] = t[:100]
    low, high = f1_interval(t, same, better, seed=5)
    assert 0 < low < high and (low, high) == f1_interval(t, same, better, seed=5)
    assert f1_interval(t, better, same, seed=5)[1] < 0
    assert f1_interval(t, same, better, seed=6) != (low, high)


def record(unsafe: bool | None, response: bool | None = None, certain: str = "", source: str = "s") -> Record:
    codes = frozenset(certain.split())
    text = None if response is None else "r"
    return Record("p", text, unsafe, response, Categories(codes, codes | {"S13"}), None, source, "human")


def answer(p: float, r: float | None = None, named: str = "", cut: bool = False) -> Answer:
    def rating(x: float) -> Rating:
        return Rating(x < 0.5, x, 0.0)

    return Answer(rating(p), None if r is None else rating(r), frozenset(named.split()), cut)


def test_turns_are_counted_apart() -> None:
    records = [
        record(True, False),
        record(False, True),
        record(None, True),
        record(True),
        record(False, True),
    ]
    answers = [answer(0.9, 0.1), answer(0.1, 0.2), answer(0.9, 0.8), None, answer(0.7, cut=True)]
    found = summarise(records, answers, Thresholds())
    assert found["coverage"] == {
        "prompt": {"labelled": 4, "judged": 3, "cut": 1, "too_long": 1},
        "response": {"labelled": 4, "judged": 3, "cut": 0, "too_long": 1},  # one was cut off whole
    }
    prompt, response = found["prompt"]["overall"], found["response"]["overall"]
    assert (prompt["n"], prompt["recall"], prompt["precision"]) == (3, 1.0, 0.5)
    assert (response["n"], response["recall"], response["precision"]) == (3, 0.5, 1.0)


def test_thresholds_are_the_policys() -> None:
    records, answers = [record(True), record(False)], [answer(0.4), answer(0.2)]
    assert summarise(records, answers, Thresholds())["prompt"]["overall"]["recall"] == 0
    assert summarise(records, answers, Thresholds(prompt=0.3))["prompt"]["overall"]["recall"] == 1
    assert summarise(records, answers, Thresholds())["response"] is None


def test_parts() -> None:
    records = [
        record(True, certain="S1 S2"),
        record(True, certain="S2", source="t"),
        record(False, source="t"),
    ]
    found = summarise(records, [answer(0.9), answer(0.2), answer(0.3)], Thresholds())["prompt"]
    assert {name: part["n"] for name, part in found["by_source"].items()} == {"s": 1, "t": 2}
    # The positives of a category against all that is safe.
    assert {code: (p["n"], p["recall"]) for code, p in found["by_category"].items()} == {
        "S1": (2, 1.0),
        "S2": (3, 0.5),
    }
    assert list(found["by_label_source"]) == ["human"]


def test_attribution() -> None:
    records = [
        record(True, certain="S1"),
        record(True, certain="S1"),
        record(True, certain="S2"),
        record(False),
    ]
    answers = [answer(0.9, named="S1 S13"), answer(0.1), answer(0.9, named="S1"), answer(0.9, named="S1")]
    found = attribution(records, answers)
    assert found["S1"] == {"certain": 1, "recall": 1.0, "claims": 2, "precision": 0.5}
    assert found["S2"]["recall"] == 0.0 and math.isnan(found["S2"]["precision"])
    assert "S13" not in found  # possible, not certain: neither right nor wrong


def test_comparison() -> None:
    records = [record(True), record(True), record(False), record(False), record(True, True), record(None)]
    first = [answer(0.9), answer(0.1), answer(0.9), answer(0.1), None, answer(0.9)]
    second = [answer(0.9), answer(0.9), answer(0.1), answer(0.9), answer(0.9, 0.9), answer(0.1)]
    found = compare(records, first, second)
    assert found["response"] is None
    prompt = found["prompt"]
    assert (prompt["pairs"], prompt["flips"], prompt["to_unsafe"], prompt["to_safe"]) == (4, 0.75, 2, 1)
    assert (prompt["mended"], prompt["broken"]) == (2, 1)
    assert prompt["f1"] == pytest.approx([0.5, 0.8]) and prompt["difference"] == pytest.approx(0.3)
    low, high = prompt["interval"]
    assert low <= prompt["difference"] <= high
    same = compare(records, first, first)["prompt"]
    assert same["flips"] == same["mended"] == same["broken"] == 0 and same["interval"] == (0.0, 0.0)


def test_json_has_no_nan() -> None:
    assert finite({"a": [float("nan"), 1.0, (float("inf"), "x")], "b": 2}) == {
        "a": [None, 1.0, [None, "x"]],
        "b": 2,
    }


def test_exact_probabilities_show_an_error_that_shrinks_with_their_number() -> None:
    draws = np.random.default_rng(1)
    p = draws.random(20_000)
    few, many = ece_by_chance(p[:300]), ece_by_chance(p)
    # 15 bins of n / 15: E|N(0, s)| = s sqrt(2 / pi), s^2 = p (1 - p) 15 / n; sqrt(p (1 - p)) is pi / 8 in the
    # mean.
    assert many == pytest.approx(math.pi / 8 * math.sqrt(2 / math.pi * 15 / 20_000), rel=0.1)
    assert few == pytest.approx(many * math.sqrt(20_000 / 300), rel=0.2)
    truth = draws.random(len(p)) < p
    assert expected_calibration_error(p, truth) < 2 * many < expected_calibration_error(p**2, truth)
    assert math.isnan(ece_by_chance([]))
