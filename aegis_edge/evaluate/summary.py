"""A guard's answers against the labels: figures of each turn, by source, category and label source.

Everything is JSON-ready but for nan, which stands where a class is missing (`finite` makes it null).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from aegis_edge import taxonomy
from aegis_edge.data.records import Record
from aegis_edge.decision import Rating
from aegis_edge.evaluate.curves import figures, reliability, roc
from aegis_edge.evaluate.judge import Answer
from aegis_edge.policy import Thresholds

Turn = Literal["prompt", "response"]
TURNS: tuple[Turn, ...] = ("prompt", "response")


@dataclass(frozen=True)
class Scored:
    """The labelled and judged turns of one kind: record numbers [n], P(unsafe) [n], whether unsafe [n]."""

    numbers: list[int]
    probability: np.ndarray[Any, np.dtype[np.float64]]
    truth: np.ndarray[Any, np.dtype[np.bool_]]


def label_of(record: Record, turn: Turn) -> bool | None:
    """Whether a turn is labelled unsafe; None where it is not labelled."""
    return record.unsafe if turn == "prompt" else record.response_unsafe


def rating_of(answer: Answer | None, turn: Turn) -> Rating | None:
    """The rating of a turn; None where it was not judged."""
    return None if answer is None else answer.prompt if turn == "prompt" else answer.response


def scored(records: Sequence[Record], answers: Sequence[Answer | None], turn: Turn) -> Scored:
    """The turns that have both a label and a rating."""
    numbers, probability, truth = [], [], []
    for number, (record, answer) in enumerate(zip(records, answers, strict=True)):
        label, rating = label_of(record, turn), rating_of(answer, turn)
        if label is not None and rating is not None:
            numbers.append(number)
            probability.append(rating.probability)
            truth.append(label)
    return Scored(numbers, np.array(probability, float), np.array(truth, bool))


def summarise(
    records: Sequence[Record], answers: Sequence[Answer | None], thresholds: Thresholds
) -> dict[str, Any]:
    """{"coverage": ..., "prompt": ..., "response": ..., "attribution": ...}; a turn nothing is known of is
    None."""
    limits = {"prompt": thresholds.prompt, "response": thresholds.response}
    return {
        "coverage": {turn: _coverage(records, answers, turn) for turn in TURNS},
        **{turn: _turn(records, answers, turn, limits[turn]) for turn in TURNS},
        "attribution": attribution(records, answers),
    }


def attribution(records: Sequence[Record], answers: Sequence[Answer | None]) -> dict[str, dict[str, Any]]:
    """How well the categories are named, in dialogues that are unsafe and were found unsafe; a code each.

    certain    dialogues for which the code is certain; recall: the share of them for which it is named
    claims     dialogues for which it is named and which are decided: certain, or not possible at all;
               precision: the share of them for which it is certain
    """
    found = {hazard.code: {"certain": 0, "hits": 0, "claims": 0} for hazard in taxonomy.HAZARDS}
    for record, answer in zip(records, answers, strict=True):
        if answer is None or not (record.unsafe or record.response_unsafe):
            continue
        if answer.prompt.safe and (answer.response is None or answer.response.safe):
            continue
        for code, count in found.items():
            certain, named = code in record.categories.certain, code in answer.named
            count["certain"] += certain
            count["hits"] += certain and named
            count["claims"] += named and (certain or code not in record.categories.possible)
    return {
        code: {
            "certain": count["certain"],
            "recall": _ratio(count["hits"], count["certain"]),
            "claims": count["claims"],
            "precision": _ratio(count["hits"], count["claims"]),
        }
        for code, count in found.items()
        if count["certain"] or count["claims"]
    }


def finite(value: Any) -> Any:
    """The same with None for what is not a finite number: JSON has no nan."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _turn(
    records: Sequence[Record], answers: Sequence[Answer | None], turn: Turn, threshold: float
) -> dict[str, Any] | None:
    found = scored(records, answers, turn)
    if not found.numbers:
        return None
    of = [records[number] for number in found.numbers]

    def part(rows: Iterable[int]) -> dict[str, Any]:
        chosen = list(rows)
        return figures(found.probability[chosen], found.truth[chosen], threshold)

    def by(key: Callable[[Record], str | None]) -> dict[str, Any]:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for row, record in enumerate(of):
            name = key(record)
            if name:
                groups[name].append(row)
        return {name: part(groups[name]) for name in sorted(groups)}

    safe, unsafe = np.flatnonzero(~found.truth).tolist(), np.flatnonzero(found.truth).tolist()
    categories = {}
    for hazard in taxonomy.HAZARDS:
        rows = [r for r in unsafe if hazard.code in of[r].categories.certain]
        if rows:
            categories[hazard.code] = part([*rows, *safe])
    source = "prompt_label_source" if turn == "prompt" else "response_label_source"
    return {
        "threshold": threshold,
        "overall": part(range(len(of))),
        "by_source": by(lambda record: record.source),
        # A category's positives against all that is safe: harmless texts have no category of their own.
        "by_category": categories,
        "by_label_source": by(lambda record: getattr(record, source)),
        "reliability": [asdict(bar) for bar in reliability(found.probability, found.truth)],
        "roc": roc(found.probability, found.truth),
    }


def _coverage(records: Sequence[Record], answers: Sequence[Answer | None], turn: Turn) -> dict[str, int]:
    """labelled = judged + too_long; cut: of those judged, how many by a beginning alone."""
    labelled = judged = cut = 0
    for record, answer in zip(records, answers, strict=True):
        if label_of(record, turn) is not None:
            labelled += 1
            if answer is not None and rating_of(answer, turn) is not None:
                judged += 1
                cut += answer.cut
    return {"labelled": labelled, "judged": judged, "cut": cut, "too_long": labelled - judged}


def _ratio(top: int, bottom: int) -> float:
    return top / bottom if bottom else float("nan")
