"""A hazard first named at inference: how well a guard finds what its training left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from aegis_edge.data.records import Record
from aegis_edge.evaluate.metrics import auroc
from aegis_edge.train.packing import Example
from aegis_edge.train.policies import NAMES, REWORDINGS, Line, Policy

MOST = 200  # prompts that fall under the hazard, and as many that do not

# Margins [N] of the examples' prompts under a policy and their labels [N], in any order.
Margins = Callable[[Sequence[Example], Policy], tuple[np.ndarray, np.ndarray]]


def measure(records: Sequence[Record], code: str, margins: Margins, seed: int = 0) -> float:
    """AUROC of prompt verdicts under a policy of this hazard alone, named and described.

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
    policy = Policy((Line(f"{NAMES[code]}: {REWORDINGS[code]['described'][0]}", code),))
    examples = [Example(r.prompt, None, n < count, None) for n, r in enumerate(chosen)]
    return auroc(*margins(examples, policy))
