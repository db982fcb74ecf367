"""The category list that a guard writes behind an unsafe verdict, scored without writing it.

A list such as ', "Safety Categories": "Violence, Threat"' begins with one of the policy's names. The tokens
of all names, each with what may stand behind it (a comma, or the end of the list), are a tree; where it
branches, the model is asked once, and a softmax over the branches that are there says how probable each is:

    P(category) = product of its branches' probabilities, summed over what may stand behind its name
                = P(the list begins with this category | it begins with one of the policy's)

These sum to 1 over the policy. What the model would write second, third and so on is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aegis_edge.errors import FamilyError

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A place where names part.

    ids    from the node that the list hangs from to this place; its label logits are read at the last one
    rows   names of the label rows of the tokens that go on from here
    leads  where each of them leads: n >= 0 is category n; -n, n > 0, is step n
    """

    ids: Ids
    rows: tuple[str, ...]
    leads: tuple[int, ...]


@dataclass(frozen=True)
class Listing:
    """The list behind one answer.

    categories  (name, code) of each, in the order of the policy, or of the family's own
    steps       step 0 first; none where there is one category only
    refusals    ids of the output up to where it says whether the response refuses, one a category, the list
                being that category alone; none where the family does not say so, or says it elsewhere
    """

    categories: tuple[tuple[str, str | None], ...]
    steps: tuple[Step, ...]
    refusals: tuple[Ids, ...] = ()

    @property
    def leaves(self) -> tuple[Ids, ...]:
        """Ids of all that is read, steps first."""
        return (*(step.ids for step in self.steps), *self.refusals)

    def probabilities(self, logits: Callable[[int, str], float]) -> list[float]:
        """P of each category, from the logit of a row at a step; they sum to 1."""
        found = [0.0] * len(self.categories)
        if not self.steps:
            return [1.0] * len(self.categories)
        reached = {0: 1.0}
        for number, step in enumerate(self.steps):  # a step stands behind the one that leads to it
            shares = softmax([logits(number, row) for row in step.rows])
            for share, lead in zip(shares, step.leads, strict=True):
                if lead < 0:
                    reached[-lead] = reached[number] * share
                else:
                    found[lead] += reached[number] * share
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `plan.py` reads it back."""
        return {
            "categories": [list(pair) for pair in self.categories],
            "steps": [{"ids": list(s.ids), "rows": list(s.rows), "leads": list(s.leads)} for s in self.steps],
            "refusals": [list(ids) for ids in self.refusals],
        }


def softmax(logits: Sequence[float]) -> list[float]:
    """exp(x) / sum of exp(x)."""
    top = max(logits)
    shares = [math.exp(x - top) for x in logits]
    return [share / sum(shares) for share in shares]


def steps_of(strings: Iterable[tuple[Ids, int]], row_of: Callable[[int], str]) -> tuple[Step, ...]:
    """The places where strings of ids part, each string being category n's. `row_of`: a token's label row.

    Raises FamilyError where one category's string is the beginning of another's.
    """
    steps: list[Step | None] = []

    def walk(group: list[tuple[Ids, int]], depth: int) -> int:
        """The lead to what these strings come to; they are alike up to `depth`."""
        owners = {category for _, category in group}
        if len(owners) == 1:
            return owners.pop()
        if any(len(ids) == depth for ids, _ in group):
            raise FamilyError(
                "answers.end: with this tokenizer a category's name is the beginning of another's",
                hint="name the control token that ends the guard's output",
            )
        children: dict[int, list[tuple[Ids, int]]] = {}
        for ids, category in group:
            children.setdefault(ids[depth], []).append((ids, category))
        if len(children) == 1:
            return walk(group, depth + 1)
        number = len(steps)
        steps.append(None)
        leads = tuple(walk(child, depth + 1) for child in children.values())
        steps[number] = Step(group[0][0][:depth], tuple(map(row_of, children)), leads)
        return -number

    walk(list(strings), 0)
    return tuple(step for step in steps if step is not None)
