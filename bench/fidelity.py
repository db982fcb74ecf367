"""How far a scorer's verdicts are from the fp32 parent's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from aegis_edge.bench.guards import NEVER, Text
from aegis_edge.conversation import Conversation
from aegis_edge.decision import Rating
from aegis_edge.scoring import Scorer

# A flip where the parent's probability is outside of these is no near tie.
NEAR = (0.3, 0.7)


@dataclass(frozen=True)
class Fidelity:
    """verdicts      ratings compared (a prompt's, and a response's where there is one)
    flips            share in which safe and unsafe are exchanged
    far_flips        how many of these where the parent's probability is outside 0.3 to 0.7
    margin_error     mean |margin - the parent's margin|
    margin_std       standard deviation of the parent's margins
    worst            largest |margin - the parent's margin|
    """

    verdicts: int
    flips: float
    far_flips: int
    margin_error: float
    margin_std: float
    worst: float

    @property
    def relative_error(self) -> float:
        """The mean margin error as a share of the margins' standard deviation."""
        return self.margin_error / self.margin_std if self.margin_std else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"relative_error": self.relative_error}


def ratings(text: Text, scorer: Scorer, conversations: Sequence[Conversation]) -> list[Rating]:
    """What a guard makes of each turn, prompts and responses in order.

    Where the verdict decides, categories are not asked for: an engine without a token tree would run the
    whole prompt again for each.
    """
    if text.decider().by_categories:
        verdicts = text.guard(scorer).check_many(conversations)
        return [rating for v in verdicts for rating in (v.prompt, v.response) if rating is not None]
    limits = text.policy.thresholds
    found: list[Rating] = []
    for verdict in text.guard(scorer, NEVER).check_many(conversations):
        turns = (verdict.prompt, limits.prompt), (verdict.response, limits.response)
        found += [replace(turn, safe=turn.probability < limit) for turn, limit in turns if turn is not None]
    return found


def compare(parent: Sequence[Rating], guard: Sequence[Rating]) -> Fidelity:
    """Two scorers' ratings of the same conversations."""
    margins = np.array([rating.margin for rating in parent])
    errors = np.abs(np.array([rating.margin for rating in guard]) - margins)
    flipped = [p for p, g in zip(parent, guard, strict=True) if p.safe != g.safe]
    return Fidelity(
        verdicts=len(parent),
        flips=len(flipped) / len(parent),
        far_flips=sum(not NEAR[0] <= rating.probability <= NEAR[1] for rating in flipped),
        margin_error=float(errors.mean()),
        margin_std=float(margins.std()),
        worst=float(errors.max()),
    )
