"""Label logits to a verdict.

    margin       m = logit(unsafe) - logit(safe)
    probability  P(unsafe) = sigmoid(m / temperature + bias), calibrated for each question
    safe         probability < the policy's threshold

An answer that stands behind others, or has a third word, has a margin too (`weighing.py`), which is
calibrated as any other. Of a guard that is asked about one category at a time, the highest margin counts.

Logits that are not finite raise: a guard that is confused must not say "safe".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aegis_edge.errors import ArtifactError, ScorerError
from aegis_edge.families.plan import (
    CATEGORY,
    CONTENT,
    PROMPT,
    QUESTIONS,
    REFUSAL,
    RESPONSE,
    Given,
    Plan,
    list_key,
)
from aegis_edge.policy import Category, Policy
from aegis_edge.verdict import CategoryScore, Outcome, Rating, Verdict, Window, merged
from aegis_edge.weighing import log_sum, margin, weighed

if TYPE_CHECKING:
    from aegis_edge.scoring import LogitArray


__all__ = ["Calibration", "CategoryScore", "Decider", "Outcome", "Rating", "Verdict", "Window", "merged"]

# The claim on what none of a policy's allowed topics is about.
OFF_TOPIC = "Off topic"

# The category question about a category that is none of the taxonomy's: the guard was not trained on it, and
# its margins mean something else. Calibrated apart where an artefact has it, as `category` else.
CUSTOM = "custom_category"


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
    if not found.keys() <= {*QUESTIONS, CUSTOM}:
        raise ArtifactError(f"calibration: unknown questions {sorted(found.keys() - {*QUESTIONS, CUSTOM})}")
    read = {question: found.get(question, Calibration()) for question in QUESTIONS}
    return read | {CUSTOM: found.get(CUSTOM, read[CATEGORY])}


class Decider:
    """Turns rows of label logits into ratings, for one plan, policy and calibration. Immutable."""

    def __init__(self, plan: Plan, policy: Policy, calibration: Mapping[str, Calibration]) -> None:
        self.has_leaves = CATEGORY in plan.questions
        if self.has_leaves and len(plan.leaves) != len(policy.categories):
            raise ArtifactError(
                f"{len(plan.leaves)} leaves for a policy of {len(policy.categories)} categories"
            )
        self._policy = policy
        self._calibration = calibration
        if plan.each not in (0, len(policy.categories)):
            raise ArtifactError(f"a plan of {plan.each} categories for {len(policy.categories)}")
        self._lists, self._each = plan.lists, plan.each
        self._row_numbers = {row: i for i, row in enumerate(plan.rows)}
        self._rows = {
            question: [self._row_numbers[row] for row in rows] for question, rows in plan.questions.items()
        }
        self._limits = {c.name: policy.threshold_of(c) for c in policy.categories}
        if not (self.has_leaves or plan.each) and policy.decided_by == "categories":
            raise policy.refusal(
                "decided_by",
                "this guard's family does not ask about categories one by one",
                "leave it out: the verdict decides",
            )
        self.by_categories = policy.by_categories and self.has_leaves
        self._is_complete = policy.is_complete
        self._thresholds = {PROMPT: policy.thresholds.prompt, RESPONSE: policy.thresholds.response}

    def ratings(
        self, reads: Sequence[str], logits: LogitArray, given: Sequence[Given] | None = None
    ) -> dict[str, Rating]:
        """The rating of each question; logits float32 [len(reads), rows]; given: the answers that each slot
        follows, None: no slot follows any. Raises ScorerError."""
        if len(logits) != len(reads):
            raise ScorerError(f"the scorer returned {len(logits)} rows of logits for {len(reads)} slots")
        if self._each:
            return self._ratings_of_each(reads, logits)
        slots = self._slots(reads, logits, given)
        found = {}
        for question in dict.fromkeys(reads):
            if question == REFUSAL:
                continue
            words = slots.get(((), question))
            value = margin(words) if words else weighed(slots, question)
            if value is None:
                raise ScorerError(f"the {question} was not read behind every answer before it")
            probability = self._calibration[question].probability(value)
            middle = None
            if words and len(words) == 3:
                middle = math.exp(words[2] - log_sum(words[1:]))
            found[question] = Rating(probability < self._thresholds[question], probability, value, middle)
        return found

    def _slots(
        self, reads: Sequence[str], logits: LogitArray, given: Sequence[Given] | None
    ) -> dict[tuple[Given, str], list[float]]:
        paths = given or [()] * len(reads)
        return {
            (path, question): self._words(question, row)
            for path, question, row in zip(paths, reads, logits, strict=True)
        }

    def _ratings_of_each(self, reads: Sequence[str], logits: LogitArray) -> dict[str, Rating]:
        """Ratings of a guard that is asked about one category at a time: a turn is unsafe where one of them
        reaches its own threshold, else the turn's."""
        found = {}
        for question in dict.fromkeys(reads):
            margins = [
                margin(self._words(question, row))
                for asked, row in zip(reads, logits, strict=True)
                if asked == question
            ]
            scores = []
            for category, value in zip(self._policy.categories, margins, strict=True):
                limit = self._thresholds[question] if category.threshold is None else category.threshold
                probability = self._calibration[question].probability(value)
                if probability >= limit:
                    scores.append(CategoryScore(category.name, category.code, probability))
            highest = self._calibration[question].probability(max(margins))
            found[question] = Rating(not scores, highest, max(margins), None, merged(scores))
        return found

    def refusal(
        self,
        reads: Sequence[str],
        logits: LogitArray,
        given: Sequence[Given],
        found: Mapping[str, Rating],
    ) -> float | None:
        """P(the response refuses), where the first pass tells: weighed over the answers before it, or, where
        they were not all read, behind those of the verdict."""
        slots = self._slots(reads, logits, given)
        value = weighed(slots, REFUSAL) if REFUSAL in reads else None
        for path, question in slots if value is None else ():
            if question == REFUSAL and all(_word(found[asked]) == word for asked, word in path):
                value = margin(slots[path, question])
        return None if value is None else self._calibration[REFUSAL].probability(value)

    def lists(
        self, reads: Sequence[str], given: Sequence[Given], found: Mapping[str, Rating]
    ) -> list[tuple[int, str, str]]:
        """The category lists behind a conversation's answers: (slot that the list hangs from, question, key
        of the plan's list)."""
        asked: list[tuple[int, str, str]] = []
        if not self._lists:
            return asked
        for slot, (question, path) in enumerate(zip(reads, given, strict=True)):
            goes_on = any(
                other in CONTENT and any(name == question for name, _ in after)
                for other, after in zip(reads, given, strict=True)
            )
            if (
                question not in CONTENT
                or goes_on
                or any(q not in found or _word(found[q]) != word for q, word in path)
            ):
                continue
            key = list_key((*path, (question, _word(found[question]))))
            if key in self._lists:
                asked.append((slot, question, key))
        return asked

    def listed(self, key: str, logits: LogitArray) -> tuple[tuple[CategoryScore, ...], float | None]:
        """The categories of a list: those from their threshold on, else the most probable one, for an unsafe
        output names one at least; and P(the response refuses) where that stands behind the list. logits
        float32 [leaves of the list, rows]."""
        listing = self._lists[key]
        if len(logits) != len(listing.leaves):
            raise ScorerError(f"the scorer returned {len(logits)} rows for a list of {len(listing.leaves)}")
        probabilities = listing.probabilities(
            lambda step, row: self._logit(CATEGORY, float(logits[step][self._row_numbers[row]]))
        )
        scores = [
            CategoryScore(name, code, p)
            for (name, code), p in zip(listing.categories, probabilities, strict=True)
        ]
        scores.sort(key=lambda score: -score.probability)
        limit = self._policy.thresholds.category
        claims = [score for score in scores if score.probability >= self._limits.get(score.name, limit)]
        refusal = None
        if listing.refusals:
            rows = logits[len(listing.steps) :]
            answers = [
                self._calibration[REFUSAL].probability(margin(self._words(REFUSAL, row))) for row in rows
            ]
            refusal = math.fsum(p * answer for p, answer in zip(probabilities, answers, strict=True))
        return tuple(claims or scores[:1]), refusal

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
        return self._violated(zip(self._policy.categories, self._probabilities(logits), strict=True))

    def by_policy(self, rating: Rating, logits: LogitArray) -> tuple[Rating, tuple[CategoryScore, ...]]:
        """A turn judged by what its policy names, and the categories that claim it.

        A hazard of the taxonomy claims what the verdict finds unsafe and its leaf affirms; a custom category
        what its leaf affirms; "Off topic" what no leaf of an allowed topic does. P(unsafe) is the most
        probable claim, max(custom leaves, 1 - max(allowed leaves), min(verdict, hazard leaves)); without the
        leaves in the minimum where the policy names all of the taxonomy.
        """
        probabilities = self._probabilities(logits)
        pairs = list(zip(self._policy.categories, probabilities, strict=True))
        hazards = [(c, p) for c, p in pairs if not c.is_custom]
        custom = [(c, p) for c, p in pairs if c.is_custom and not c.allowed]
        allowed = [(c, p) for c, p in pairs if c.allowed]
        general = min(rating.probability, max((p for _, p in hazards), default=0.0))
        if self._is_complete:
            general = rating.probability
        claims = self._violated(custom) + (() if rating.safe else self._violated(hazards))
        off_topic = 1.0 - max(p for _, p in allowed) if allowed else 0.0
        if allowed and not self._violated(allowed):
            claims += (CategoryScore(OFF_TOPIC, None, off_topic),)
        is_safe = not claims and (rating.safe or not self._is_complete)
        probability = max([general, off_topic, *(p for _, p in custom)])
        ranked = tuple(sorted(claims, key=lambda score: -score.probability))
        return Rating(is_safe, probability, rating.margin), ranked

    def _probabilities(self, logits: LogitArray) -> list[float]:
        return [
            self._calibration[CUSTOM if category.is_custom else CATEGORY].probability(
                self._margin(CATEGORY, row)
            )
            for category, row in zip(self._policy.categories, logits, strict=True)
        ]

    def _violated(self, found: Iterable[tuple[Category, float]]) -> tuple[CategoryScore, ...]:
        violated = [
            CategoryScore(category.name, category.code, probability)
            for category, probability in found
            if probability >= self._policy.threshold_of(category)
        ]
        return tuple(sorted(violated, key=lambda score: -score.probability))

    def _margin(self, question: str, row: LogitArray) -> float:
        return margin(self._words(question, row))

    def _words(self, question: str, row: LogitArray) -> list[float]:
        return [self._logit(question, float(row[number])) for number in self._rows[question]]

    def _logit(self, question: str, logit: float) -> float:
        if not math.isfinite(logit):
            raise ScorerError(
                f"the scorer returned logits that are not finite for the {question}; no verdict can be given",
                hint="verify the guard with: aegis-edge inspect DIR",
            )
        return logit


def _word(rating: Rating) -> int:
    """Which of its words a rating comes to."""
    if rating.safe:
        return 0
    return 2 if rating.controversial is not None and rating.controversial >= 0.5 else 1
