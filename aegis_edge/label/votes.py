"""Votes and the majority of them.

Of the judges of a jury, n cast a vote on a row and the others abstained. The row gets a label where

    n >= quorum    and    more than n / 2 of the votes are for that label

else none: too few votes, or a tie. An abstention is no vote: it is in no count, whatever its cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aegis_edge.label.errors import LabelError
from aegis_edge.label.rows import LABELS, Label

Cause = Literal[
    "http", "timeout", "connection", "empty", "nonsense", "declined", "cut off", "guard", "not asked"
]
# Causes that say that a judge can not be reached, rather than that it had nothing to say about one row.
UNREACHABLE: frozenset[Cause] = frozenset({"http", "timeout", "connection"})


@dataclass(frozen=True)
class Vote:
    """A judge's label of one response.

    categories  names of the taxonomy, in the judge's order; none where the label is safe
    unknown     what it named besides that is in no taxonomy; kept in the journal, used nowhere
    """

    label: Label
    categories: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Abstention:
    """No vote, and why: a cause to count by, and the reason in words."""

    cause: Cause
    reason: str


Opinion = Vote | Abstention


@dataclass(frozen=True)
class Outcome:
    """What a jury makes of one row.

    label       None where there is none
    how         unanimous, majority (some votes were against), tie, or quorum (too few votes)
    categories  of an unsafe row: named by more than half of the votes for unsafe, most named first
    """

    label: Label | None
    how: Literal["unanimous", "majority", "tie", "quorum"]
    categories: tuple[str, ...] = ()


def default_quorum(judges: int) -> int:
    """More than half of the judges."""
    return judges // 2 + 1


def majority(opinions: Mapping[str, Opinion], quorum: int) -> Outcome:
    """The outcome of one row from each judge's opinion; `quorum` votes at least. Raises LabelError for a
    quorum below 1: no vote at all must never be a majority."""
    if quorum < 1:
        raise LabelError(f"a quorum of {quorum} votes is none")
    votes = [opinion for opinion in opinions.values() if isinstance(opinion, Vote)]
    if len(votes) < quorum:
        return Outcome(None, "quorum")
    safe, unsafe = ([vote for vote in votes if vote.label == label] for label in LABELS)
    if len(safe) == len(unsafe):
        return Outcome(None, "tie")
    how: Literal["unanimous", "majority"] = "majority" if safe and unsafe else "unanimous"
    if len(safe) > len(unsafe):
        return Outcome("safe", how)
    # Counter keeps the order of first mention, and its sort is stable: judges' order decides among equals.
    named = Counter(name for vote in unsafe for name in dict.fromkeys(vote.categories))
    agreed = tuple(name for name, count in named.most_common() if 2 * count > len(unsafe))
    return Outcome("unsafe", how, agreed)
