"""Binary classification metrics of a guard: P(unsafe) against truth. Arrays are 1-D and equally long."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike


class Report(TypedDict):
    n: int
    positives: int
    precision: float
    recall: float
    f1: float
    accuracy: float
    false_positive_rate: float
    auroc: float
    ece: float
    ece_by_chance: float


def auroc(probability: ArrayLike, truth: ArrayLike) -> float:
    """Probability that a positive outranks a negative (ties count half); nan where a class is missing.

    By ranks: (sum of the positives' mean ranks - p (p + 1) / 2) / (p n).
    """
    p, t = np.asarray(probability, float), np.asarray(truth, bool)
    positives, negatives = int(t.sum()), int((~t).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[t].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(probability: ArrayLike, truth: ArrayLike, bins: int = 15) -> float:
    """Mean over equal-width bins of P(unsafe) of |mean probability - share unsafe|, weighted by bin size."""
    p, t = np.asarray(probability, float), np.asarray(truth, float)
    if not len(p):
        return float("nan")
    return float(_gaps(p, t[None], bins)[0])


def _gaps(p: np.ndarray, truths: np.ndarray, bins: int = 15) -> np.ndarray:
    """The error of `p` [N] against each row of `truths` [K, N]: a bin's size times the difference of its
    means is the difference of its sums.
    """
    place = np.minimum((p * bins).astype(int), bins - 1)
    within = (place[:, None] == np.arange(bins)).astype(float)
    return np.asarray(np.abs(truths @ within - p @ within).sum(1) / len(p))


def ece_by_chance(probability: ArrayLike, draws: int = 200) -> float:
    """The calibration error that probabilities which are exactly right would show on so few texts: the mean
    over `draws` of labels drawn from them, seeded. What is measured can hardly be below it.
    """
    p = np.asarray(probability, float)
    if not len(p):
        return float("nan")
    return float(_gaps(p, np.random.default_rng(0).random((draws, len(p))) < p).mean())


def report(probability: ArrayLike, truth: ArrayLike, threshold: float = 0.5) -> Report:
    """All figures at `threshold`; a ratio with an empty denominator is nan (F1: 0 where nothing is found)."""
    p, t = np.asarray(probability, float), np.asarray(truth, bool)
    said = p >= threshold
    tp, fp, fn = int((said & t).sum()), int((said & ~t).sum()), int((~said & t).sum())
    tn = len(t) - tp - fp - fn

    def ratio(top: float, bottom: float) -> float:
        return top / bottom if bottom else float("nan")

    return Report(
        n=len(t),
        positives=int(t.sum()),
        precision=ratio(tp, tp + fp),
        recall=ratio(tp, tp + fn),
        f1=ratio(2 * tp, 2 * tp + fp + fn) if tp + fp + fn else 0.0,
        accuracy=ratio(tp + tn, len(t)),
        false_positive_rate=ratio(fp, fp + tn),
        auroc=auroc(p, t),
        ece=expected_calibration_error(p, t),
        ece_by_chance=ece_by_chance(p),
    )
