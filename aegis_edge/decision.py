"""Label logits to a verdict.

    margin       m = logit(unsafe) - logit(safe)
    probability  P(unsafe) = sigmoid(m / temperature + bias), calibrated for each question
    safe         probability < the policy's threshold

A response that is read twice, after the prompt was called safe and after it was called unsafe, has
P(unsafe) = P(prompt safe) P(unsafe | safe) + P(prompt unsafe) P(unsafe | unsafe), the margin of which is
calibrated as any other.

Logits that are not finite raise: a guard that is confused must not say "safe".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aegis_edge.errors import ArtifactError, PolicyError, ScorerError
from aegis_edge.families.plan import CATEGORY, PROMPT, QUESTIONS, RESPONSE, Plan
from aegis_edge.policy import Category, Policy

if TYPE_CHECKING:
    from aegis_edge.scoring import LogitArray


# The claim on what none of a policy's allowed topics is about.
OFF_TOPIC = "Off topic"

# The category question about a category that is none of the taxonomy's: the guard was not trained on it, and
# its margins mean something else. Calibrated apart where an artefact has it, as `category` else.
CUSTOM = "custom_category"


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
class Outcome:
    """What one pass over one conversation, or one window of it, found.

    ratings     of each question it was asked; categories: as in Verdict; label_mass: as in Verdict
    """

    ratings: Mapping[str, Rating]
    categories: tuple[CategoryScore, ...]
    label_mass: float | None = None


@dataclass(frozen=True)
class Window:
    """A part of a long text.

    of          "prompt" or "response"
    start, end  the tokens of that text which it holds, from 0; `end` is the first that it does not
    characters  the same in characters of the text; a character that a seam divides is in both windows. None
                where it is a window of the second view of the text (see `Verdict.anomaly`), as are its tokens
    """

    of: str
    start: int
    end: int
    characters: tuple[int, int] | None


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    safe        whether prompt and response (where there is one) are both safe
    response    None where there was no response
    categories  violated ones, most probable first; none when safe, or when no category claims what is unsafe
    tokens      tokens of the prompt's and response's text, all of which were scored
    label_mass  share of the full vocabulary's probability that the labels hold, the smaller of prompt's and
                response's; None unless the guard was loaded with label_mass=True
    window      the part of a long text that decided: the one of the highest risk; None where it is the whole
    turn        the turn of a dialogue that decided, from 0; None where there was no dialogue
    anomaly     what Unicode hides in some text, comma-separated (`views.py`): it was judged as it is and with
                that undone; None where there is nothing
    """

    safe: bool
    prompt: Rating
    response: Rating | None
    categories: tuple[CategoryScore, ...]
    tokens: int
    label_mass: float | None = None
    window: Window | None = None
    turn: int | None = None
    anomaly: str | None = None

    @property
    def tokens_total(self) -> int:
        """Tokens of all that was handed in; the same as `tokens`."""
        return self.tokens

    @property
    def tokens_seen(self) -> int:
        """Tokens that were scored: `tokens_total` in every verdict. Where they differ the check raises."""
        return self.tokens


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


def merged(claims: Iterable[CategoryScore]) -> tuple[CategoryScore, ...]:
    """Each category once, with the highest of its probabilities, most probable first."""
    best: dict[str, CategoryScore] = {}
    for claim in claims:
        if claim.name not in best or claim.probability > best[claim.name].probability:
            best[claim.name] = claim
    return tuple(sorted(best.values(), key=lambda claim: -claim.probability))


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
        self._rows = {
            q: (plan.rows.index(no), plan.rows.index(yes)) for q, (no, yes) in plan.questions.items()
        }
        if not self.has_leaves and policy.decided_by == "categories":
            raise PolicyError(
                "decided_by: this guard's family does not ask about categories one by one",
                hint="leave it out: the verdict decides",
            )
        self.by_categories = policy.by_categories and self.has_leaves
        self._is_complete = policy.is_complete
        self._thresholds = {PROMPT: policy.thresholds.prompt, RESPONSE: policy.thresholds.response}

    def ratings(self, reads: Sequence[str], logits: LogitArray) -> dict[str, Rating]:
        """The rating of each question; logits float32 [len(reads), rows]. Raises ScorerError."""
        if len(logits) != len(reads):
            raise ScorerError(f"the scorer returned {len(logits)} rows of logits for {len(reads)} slots")
        margins: dict[str, list[float]] = {}
        for question, row in zip(reads, logits, strict=True):
            margins.setdefault(question, []).append(self._margin(question, row))
        found = {}
        for question, given in margins.items():
            margin = given[0] if len(given) == 1 else weighed(margins[PROMPT][0], given[0], given[1])
            probability = self._calibration[question].probability(margin)
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
        no, yes = self._rows[question]
        margin = float(row[yes]) - float(row[no])
        if not math.isfinite(margin):
            raise ScorerError(
                f"the scorer returned logits that are not finite for the {question}; no verdict can be given",
                hint="verify the guard with: aegis-edge inspect DIR",
            )
        return margin


def weighed(first: float, if_safe: float, if_unsafe: float) -> float:
    """The margin of a second answer, from that of the first and those of the second after either answer.

    log P(unsafe) - log P(safe) of the second, summed over the first; finite for finite margins.
    """
    safe, unsafe = _log_sigmoid(-first), _log_sigmoid(first)
    yes = _log_add(safe + _log_sigmoid(if_safe), unsafe + _log_sigmoid(if_unsafe))
    no = _log_add(safe + _log_sigmoid(-if_safe), unsafe + _log_sigmoid(-if_unsafe))
    return yes - no


def _log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def _log_add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
