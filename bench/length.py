"""How cost grows with length: whether it is linear, beyond what attention adds.

Every token goes through the same matrices, so a pass should cost a * n; attention adds b * (the keys that n
tokens look at), which grows faster. a and b are fitted to the medians (least squares of relative errors,
b >= 0), and what they do not explain is the deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FROM, TO = 128, 512  # shorter passes wait for the weights, which is another limit
Row = dict[str, Any]


def rows(timed: Sequence[Row]) -> list[Row]:
    """A row a scorer and group of time rows (policy, bare) that has three lengths from 128 to 512 or more."""
    found: dict[tuple[str, str], dict[int, tuple[int, float]]] = {}
    for row in timed:
        if row["group"] in ("policy", "bare") and FROM <= row["tokens"] <= TO:
            lengths = found.setdefault((row["scorer"], row["group"]), {})
            lengths[row["tokens"]] = row["policy_tokens"], row["p50_ms"]
    return [
        {"kind": "length", "scorer": scorer, "group": group, **_growth(lengths)}
        for (scorer, group), lengths in found.items()
        if len(lengths) >= 3
    ]


def _growth(lengths: Mapping[int, tuple[int, float]]) -> Row:
    """lengths: tokens -> (policy tokens, median milliseconds)."""
    tokens = sorted(lengths)
    times = np.array([lengths[n][1] for n in tokens])
    seen = np.array([looked_at(n, lengths[n][0]) for n in tokens], np.float64)
    linear, quadratic = fit(np.array(tokens, np.float64), seen, times)
    explained = linear * np.array(tokens) + quadratic * seen
    per_token = times / tokens
    return {
        "tokens": tokens,
        "per_token_us": [round(float(1e3 * value), 3) for value in per_token],
        "growth": round(float(per_token[-1] / per_token[0] - 1), 4),
        "attention_share": round(float(quadratic * seen[-1] / times[-1]), 4),
        "deviation": round(float(np.abs(times / explained - 1).max()), 4),
    }


def looked_at(tokens: int, policy: int) -> int:
    """Keys that `tokens` new tokens look at together, behind a policy of so many."""
    return tokens * policy + tokens * (tokens + 1) // 2


def fit(tokens: np.ndarray, seen: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """(a, b), b >= 0, with the least sum of ((a * tokens + b * seen) / times - 1)^2."""
    columns = np.stack([tokens / times, seen / times], axis=1)
    a, b = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)[0]
    if b < 0:
        return float(columns[:, 0].sum() / np.square(columns[:, 0]).sum()), 0.0
    return float(a), float(b)
