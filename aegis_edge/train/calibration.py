"""Temperature and bias a slot kind: P(label 1) = sigmoid(margin / temperature + bias), fitted on
validation margins.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

KINDS: tuple[str, ...] = ("prompt", "response", "category")
IDENTITY = {"temperature": 1.0, "bias": 0.0}


def fit(margins: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Platt scaling, nearly unregularised; identity where a label is missing or margins carry nothing.

    margins float [N], labels 0 or 1 [N]. A slope that is not positive would turn verdicts round, so it is
    refused.
    """
    if len(set(np.asarray(labels).tolist())) < 2:
        return dict(IDENTITY)
    model = LogisticRegression(C=1e3).fit(np.asarray(margins, float)[:, None], labels)
    slope = float(model.coef_[0, 0])
    if slope < 1e-3:
        return dict(IDENTITY)
    return {"temperature": 1.0 / slope, "bias": float(model.intercept_[0])}


def fit_kinds(margins: np.ndarray, kinds: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    return {name: fit(margins[kinds == k], labels[kinds == k]) for k, name in enumerate(KINDS)}


def apply(margins: np.ndarray, calibration: dict[str, float]) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-(margins / calibration["temperature"] + calibration["bias"]))))
