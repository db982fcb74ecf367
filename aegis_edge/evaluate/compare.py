"""Two guards on the same turns: verdicts that flip, and how sure the difference of their F1 is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from aegis_edge.data.records import Record
from aegis_edge.evaluate.judge import Answer
from aegis_edge.evaluate.summary import TURNS, Turn, label_of, rating_of

SAMPLES = 10_000
COVERAGE = 0.95


def compare(
    records: Sequence[Record],
    first: Sequence[Answer | None],
    second: Sequence[Answer | None],
    seed: int = 0,
) -> dict[str, Any]:
    """For each turn (None where no labelled one was judged by both):

    pairs                   labelled turns that both judged
    flips                   share in which the verdicts differ
    to_unsafe, to_safe      how many the second guard calls unsafe, safe, and the first does not
    mended, broken          how many of the flips made a verdict right, wrong
    f1                      of both; difference: the second's less the first's; interval: see f1_interval
    """
    return {turn: _compare(records, first, second, turn, seed) for turn in TURNS}


def f1_interval(
    truth: ArrayLike, first: ArrayLike, second: ArrayLike, seed: int = 0, samples: int = SAMPLES
) -> tuple[float, float]:
    """95 % interval of F1(second) - F1(first): percentiles of a paired bootstrap; bool arrays [n], n >= 1.

    Rows are drawn with replacement, each with its label and both verdicts. The difference depends only on
    how many rows there are of each of the 8 kinds (label, verdict, verdict), and drawing n rows draws these
    counts from a multinomial distribution: so the counts are drawn, 10,000 times in milliseconds for any n.
    """
    t, a, b = (np.asarray(x, bool) for x in (truth, first, second))
    cells = np.bincount(4 * t + 2 * a + b, minlength=8)
    drawn = np.random.default_rng(seed).multinomial(len(t), cells / len(t), size=samples)
    kinds = np.arange(8)
    is_t, is_a, is_b = (kinds & 4) > 0, (kinds & 2) > 0, (kinds & 1) > 0
    difference = _f1(drawn, is_t, is_b) - _f1(drawn, is_t, is_a)
    low, high = np.quantile(difference, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _f1(counts: np.ndarray, truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """F1 of each row of counts [.., 8]; 0 where nothing is unsafe and nothing is called so."""
    hits = counts[..., truth & said].sum(-1)
    total = counts[..., truth].sum(-1) + counts[..., said].sum(-1)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)


def _compare(
    records: Sequence[Record],
    first: Sequence[Answer | None],
    second: Sequence[Answer | None],
    turn: Turn,
    seed: int,
) -> dict[str, Any] | None:
    rows = []
    for record, one, other in zip(records, first, second, strict=True):
        label, a, b = label_of(record, turn), rating_of(one, turn), rating_of(other, turn)
        if label is not None and a is not None and b is not None:
            rows.append((label, not a.safe, not b.safe))
    if not rows:
        return None
    truth, said, says = np.array(rows, bool).T
    flipped = said != says
    counts = np.bincount(4 * truth + 2 * said + says, minlength=8)
    kinds = np.arange(8)
    f1 = [float(_f1(counts, (kinds & 4) > 0, (kinds & bit) > 0)) for bit in (2, 1)]
    return {
        "pairs": len(rows),
        "flips": float(flipped.mean()),
        "to_unsafe": int((says & ~said).sum()),
        "to_safe": int((said & ~says).sum()),
        "mended": int((flipped & (says == truth)).sum()),
        "broken": int((flipped & (said == truth)).sum()),
        "f1": f1,
        "difference": f1[1] - f1[0],
        "interval": f1_interval(truth, said, says, seed),
        "samples": SAMPLES,
        "seed": seed,
    }
