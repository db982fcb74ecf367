"""Categories first named at inference: how well a guard finds a hazard that its training left out, and the
scale of its answers about categories that are none of the taxonomy's."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from aegis_edge.data.records import Record
from aegis_edge.data.topics import TOPICS, topical
from aegis_edge.evaluate.metrics import auroc
from aegis_edge.train import calibration
from aegis_edge.train.packing import Example
from aegis_edge.train.policies import NAMES, REWORDINGS, Line, Policy

EACH = 12  # prompts a topic
SCALED = 64  # topics that the scale of custom categories is fitted on: 1,500 answers
MOST = 200  # prompts that fall under the hazard, and as many that do not

# Margins [N] of the examples' slots under a policy and their labels [N], in any order.
Margins = Callable[[Sequence[Example], Policy], tuple[np.ndarray, np.ndarray]]


def measure(records: Sequence[Record], code: str, margins: Margins, seed: int = 0) -> float:
    """AUROC of the category's leaf under a policy of this hazard alone, named and described: a category that
    the taxonomy does not have is decided by its leaf.

    Positives certainly fall under it; negatives certainly do not, one half harmful in other ways (a guard
    that only tells harm from no harm gets those wrong), one half harmless. nan where a class is missing.
    """
    rng = random.Random(f"{seed}/{code}")
    yes = [r for r in records if r.unsafe and code in r.categories.certain]
    harmful = [r for r in records if r.unsafe and code not in r.categories.possible]
    harmless = [r for r in records if r.unsafe is False and r.response_unsafe is not True]
    count = min(MOST, len(yes))
    chosen = [*rng.sample(yes, count), *rng.sample(harmful, min(len(harmful), count // 2))]
    chosen += rng.sample(harmless, min(len(harmless), count - count // 2))
    line = Line(f"{NAMES[code]}: {REWORDINGS[code]['described'][0]}", code)
    asked = [Example(r.prompt, None, None, None, ((line.text, n < count),)) for n, r in enumerate(chosen)]
    return auroc(*margins(asked, Policy((line,))))


def custom_scale(margins: Margins, seed: int = 0) -> dict[str, float]:
    """Temperature and bias of custom categories: some everyday topics, each under a policy that forbids it,
    asked about its own prompts and as many of others."""
    rng = random.Random(seed)
    topics = rng.sample(TOPICS, min(SCALED, len(TOPICS)))
    records = topical(topics, EACH, seed)
    found, labels = [], []
    for topic in topics:
        own = [r for r in records if r.raw_category == topic.name]
        others = rng.sample([r for r in records if r.raw_category != topic.name], len(own))
        line = Line(f"{topic.name}: {topic.description}", topic=topic.name)
        pairs = [*((r, True) for r in own), *((r, False) for r in others)]
        asked = [Example(r.prompt, None, None, None, ((line.text, holds),)) for r, holds in pairs]
        values, holds_of = margins(asked, Policy((line,)))
        found.append(values)
        labels.append(holds_of)
    return calibration.fit(np.concatenate(found), np.concatenate(labels))
