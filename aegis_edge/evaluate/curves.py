"""Metrics over all thresholds. Needs scikit-learn (the extra `evaluate`); arrays are 1-D, equally long.

Those that need a class which is not there are nan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_curve  # type: ignore[import-untyped]

from aegis_edge.evaluate.metrics import report

RECALLS = (0.9, 0.95)
FALSE_POSITIVE_RATES = (0.01, 0.05)
BINS = 15  # as in metrics.expected_calibration_error


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability plot: rows whose P(unsafe) lies in [low, low + 1/BINS)."""

    low: float
    count: int
    probability: float  # mean P(unsafe)
    unsafe: float  # share that is unsafe


def auprc(probability: ArrayLike, truth: ArrayLike) -> float:
    """Area under precision over recall as the step-wise sum (average precision)."""
    p, t = np.asarray(probability, float), np.asarray(truth, bool)
    return float(average_precision_score(t, p)) if t.any() else float("nan")


def false_positive_rate_at_recall(probability: ArrayLike, truth: ArrayLike, recall: float) -> float:
    """The lowest false positive rate of a threshold that finds at least `recall` of the positives."""
    fpr, tpr = _roc(probability, truth)
    return float(fpr[tpr >= recall - 1e-12].min()) if len(fpr) else float("nan")


def recall_at_false_positive_rate(probability: ArrayLike, truth: ArrayLike, rate: float) -> float:
    """The highest recall of a threshold whose false positive rate is at most `rate`."""
    fpr, tpr = _roc(probability, truth)
    return float(tpr[fpr <= rate + 1e-12].max()) if len(fpr) else float("nan")


def figures(
    probability: ArrayLike, truth: ArrayLike, threshold: float, recalls: Sequence[float] = RECALLS
) -> dict[str, Any]:
    """Those of `metrics.report`, and AUPRC and both fixed points: {"fpr_at_recall": {"0.9": ...}, ...}."""
    return {
        **report(probability, truth, threshold),
        "auprc": auprc(probability, truth),
        "fpr_at_recall": {f"{r:g}": false_positive_rate_at_recall(probability, truth, r) for r in recalls},
        "recall_at_fpr": {
            f"{f:g}": recall_at_false_positive_rate(probability, truth, f) for f in FALSE_POSITIVE_RATES
        },
    }


def reliability(probability: ArrayLike, truth: ArrayLike, bins: int = BINS) -> list[Bin]:
    """The bins that hold a row, of equal width, lowest first."""
    p, t = np.asarray(probability, float), np.asarray(truth, float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        Bin(int(b) / bins, int(inside.sum()), float(p[inside].mean()), float(t[inside].mean()))
        for b in np.unique(place)
        for inside in [place == b]
    ]


def roc(probability: ArrayLike, truth: ArrayLike) -> list[tuple[float, float]]:
    """(false positive rate, recall) from strictest to laxest threshold; empty where a class is missing."""
    return [(float(x), float(y)) for x, y in zip(*_roc(probability, truth, thin=True), strict=True)]


def _roc(probability: ArrayLike, truth: ArrayLike, thin: bool = False) -> tuple[Any, Any]:
    p, t = np.asarray(probability, float), np.asarray(truth, bool)
    if t.all() or not t.any():
        return np.empty(0), np.empty(0)
    fpr, tpr, _ = roc_curve(t, p, drop_intermediate=thin)
    return fpr, tpr
