"""What a check finds: the verdict, and its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rating:
    """One turn judged.

    probability    calibrated P(unsafe)
    margin         logit(unsafe) - logit(safe), raw
    controversial  of a family with three levels: the share of `probability` that is the middle one
    categories     of a family that lists or is asked about categories turn by turn: this turn's violated ones
    """

    safe: bool
    probability: float
    margin: float
    controversial: float | None = None
    categories: tuple[CategoryScore, ...] = ()


@dataclass(frozen=True)
class CategoryScore:
    """A violated category. `code` is the taxonomy's, None for custom categories without one; where a family
    brings categories of its own, its name and code. `probability` is P(violated), or, of a category list that
    the guard writes, P(the list begins with this one): see `families/listing.py`."""

    name: str
    code: str | None
    probability: float


@dataclass(frozen=True)
class Outcome:
    """What one pass over one conversation, or one window of it, found.

    ratings     of each question it was asked; categories, label_mass, refusal: as in Verdict
    """

    ratings: Mapping[str, Rating]
    categories: tuple[CategoryScore, ...]
    label_mass: float | None = None
    refusal: float | None = None


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
    refusal     P(the response refuses), of families that say so; None else
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
    refusal: float | None = None

    @property
    def tokens_total(self) -> int:
        """Tokens of all that was handed in; the same as `tokens`."""
        return self.tokens

    @property
    def tokens_seen(self) -> int:
        """Tokens that were scored: `tokens_total` in every verdict. Where they differ the check raises."""
        return self.tokens


def merged(claims: Iterable[CategoryScore]) -> tuple[CategoryScore, ...]:
    """Each category once, with the highest of its probabilities, most probable first."""
    best: dict[str, CategoryScore] = {}
    for claim in claims:
        if claim.name not in best or claim.probability > best[claim.name].probability:
            best[claim.name] = claim
    return tuple(sorted(best.values(), key=lambda claim: -claim.probability))
