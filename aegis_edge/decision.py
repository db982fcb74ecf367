"""Label logits to a verdict.

    margin       m = logit(unsafe) - logit(safe)
    probability  P(unsafe) = sigmoid(m / temperature + bias), calibrated for each question
    safe         probability < the policy's threshold

Logits that are not finite raise: a guard that is confused must not say "safe".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aegis_edge.errors import ArtifactError, ScorerError
from aegis_edge.families.plan import CATEGORY, PROMPT, QUESTIONS, RESPONSE, Plan
from aegis_edge.policy import Policy

if TYPE_CHECKING:
    from aegis_edge.scoring import LogitArray


@dataclass(frozen=True)
class Rating:
    """One turn judged. `probability`: calibrated P(unsafe); `margin`: logit(unsafe) - logit(safe), raw."""

    safe: bool
    probability: float
    margin: float


@dataclass(frozen=True)
class CategoryScore:
    """A violated category. `code` is the taxonomy's, None for custom categories without one."""

    name: str
    code: str | None
    probability: float


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    safe        whether prompt and response (where there is one) are both safe
    response    None where there was no response
    categories  violated ones, most probable first; none when safe, or when no category claims what is unsafe
    tokens      tokens of the prompt's and response's text, all of which were scored
    label_mass  share of the full vocabulary's probability that the labels hold, the smaller of prompt's and
                response's; None unless the guard was loaded with label_mass=True
    """

    safe: bool
    prompt: Rating
    response: Rating | None
    categories: tuple[CategoryScore, ...]
    tokens: int
    label_mass: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of one question's margin: P = sigmoid(margin / temperature + bias)."""

    temperature: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.bias)):
            raise ArtifactError(
                f"calibration: temperature {self.temperature}, bias {self.bias} are no scaling"
            )

    def probability(self, margin: float) -> float:
        """P(unsafe) for a finite margin."""
        x = margin / self.temperature + self.bias
        # Either form is exact for its sign and neither overflows.
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def read_calibration(data: Mapping[str, Any]) -> dict[str, Calibration]:
    """A manifest's calibration section; questions it leaves out are not scaled. Raises ArtifactError."""
    try:
        found = {name: Calibration(float(c["temperature"]), float(c["bias"])) for name, c in data.items()}
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError("calibration: every question needs a temperature and a bias") from error
    if not found.keys() <= set(QUESTIONS):
        raise ArtifactError(f"calibration: unknown questions {sorted(found.keys() - set(QUESTIONS))}")
    return {question: found.get(question, Calibration()) for question in QUESTIONS}


class Decider:
    """Turns rows of label logits into ratings, for one plan, policy and calibration. Immutable."""

    def __init__(self, plan: Plan, policy: Policy, calibration: Mapping[str, Calibration]) -> None:
        if len(plan.leaves) != len(policy.categories):
            raise ArtifactError(
                f"{len(plan.leaves)} leaves for a policy of {len(policy.categories)} categories"
            )
        self._policy = policy
        self._calibration = calibration
        self._rows = {
            q: (plan.rows.index(no), plan.rows.index(yes)) for q, (no, yes) in plan.questions.items()
        }
        self._thresholds = {PROMPT: policy.thresholds.prompt, RESPONSE: policy.thresholds.response}

    def ratings(self, reads: Sequence[str], logits: LogitArray) -> dict[str, Rating]:
        """The rating of each question; logits float32 [len(reads), rows]. Raises ScorerError."""
        if len(logits) != len(reads):
            raise ScorerError(f"the scorer returned {len(logits)} rows of logits for {len(reads)} slots")
        found = {}
        for question, row in zip(reads, logits, strict=True):
            margin, probability = self._read(question, row)
            found[question] = Rating(probability < self._thresholds[question], probability, margin)
        return found

    def mass(self, reads: Sequence[str], logits: LogitArray, log_sum_exp: LogitArray) -> float:
        """The labels' share of the full vocabulary's probability, the smallest of the questions'."""
        shares = []
        for question, row, total in zip(reads, logits, log_sum_exp, strict=True):
            shares.append(sum(math.exp(float(row[label]) - float(total)) for label in self._rows[question]))
        return min(shares)

    def categories(self, logits: LogitArray) -> tuple[CategoryScore, ...]:
        """The violated ones, most probable first; logits float32 [categories of the policy, rows]."""
        if len(logits) != len(self._policy.categories):
            raise ScorerError(
                f"the scorer returned {len(logits)} rows for {len(self._policy.categories)} categories"
            )
        violated = []
        for category, row in zip(self._policy.categories, logits, strict=True):
            _, probability = self._read(CATEGORY, row)
            if probability >= self._policy.threshold_of(category):
                violated.append(CategoryScore(category.name, category.code, probability))
        return tuple(sorted(violated, key=lambda score: -score.probability))

    def _read(self, question: str, row: LogitArray) -> tuple[float, float]:
        no, yes = self._rows[question]
        margin = float(row[yes]) - float(row[no])
        if not math.isfinite(margin):
            raise ScorerError(
                f"the scorer returned logits that are not finite for the {question}; no verdict can be given",
                hint="verify the guard with: aegis-edge inspect DIR",
            )
        return margin, self._calibration[question].probability(margin)
