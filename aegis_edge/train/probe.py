"""Linear probing: label rows by logistic regression on the frozen base, so that LoRA starts from rows that
work.

LoRA from random or LM-head rows first distorts the features to suit poor rows; starting from probed ones
generalises better (LP-FT, arXiv 2202.10054) and saves most of the first hour.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

from aegis_edge.train.model import LeanLlama

STRENGTH = 0.01  # C of the regression: strong, as features (576) are many against a few thousand examples


def fit_rows(
    hidden: np.ndarray, labels: np.ndarray, strength: float = STRENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """Rows float32 [2, H] and bias float32 [2] whose difference is the fitted margin of label 1 over
    label 0.
    """
    scaler = StandardScaler().fit(hidden)
    fit = LogisticRegression(C=strength, class_weight="balanced", max_iter=300).fit(
        scaler.transform(hidden), labels
    )
    direction = fit.coef_[0] / scaler.scale_
    offset = float(fit.intercept_[0] - direction @ scaler.mean_)
    rows = np.stack((-direction / 2, direction / 2)).astype(np.float32)
    return rows, np.asarray((-offset / 2, offset / 2), np.float32)


def probe(model: LeanLlama, hidden: np.ndarray, kinds: np.ndarray, labels: np.ndarray) -> list[int]:
    """Set the model's rows kind by kind. Returns the kinds that had both labels and were fitted."""
    fitted = []
    for kind in range(model.head.shape[0] // 2):
        mine = kinds == kind
        if len(set(labels[mine].tolist())) < 2:
            continue
        rows, bias = fit_rows(hidden[mine], labels[mine])
        with torch.no_grad():
            model.head[2 * kind : 2 * kind + 2] = torch.from_numpy(rows)
            model.head_bias[2 * kind : 2 * kind + 2] = torch.from_numpy(bias)
        fitted.append(kind)
    return fitted
