"""Label logits to margins, where an answer may have three words or stand behind other answers.

margin of a slot      log(sum of exp of the logits that are not safe) - logit(safe)
an answer behind      P(unsafe) = sum over the ways g of answering before it of P(g) P(unsafe | g),
others                P(g) = product of the softmax probabilities of its words
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aegis_edge.families.plan import Given

# Logits of a slot's words, safe first; by the question and the answers before it.
Slots = Mapping[tuple[Given, str], Sequence[float]]


def margin(words: Sequence[float]) -> float:
    """logit(unsafe) - logit(safe) of one slot; the words that are not safe count together."""
    return (words[1] if len(words) == 2 else log_sum(words[1:])) - words[0]


def weighed(slots: Slots, question: str) -> float | None:
    """The margin of a question that was read behind other answers: log P(unsafe) - log P(safe), summed over
    these; finite for finite logits. None where not all ways of answering before it were read."""
    no, yes, reached = [], [], []
    for (given, asked), words in slots.items():
        if asked != question:
            continue
        path = [_log_shares(slots[given[:i], name])[word] for i, (name, word) in enumerate(given)]
        shares = _log_shares(words)
        reached.append(sum(path))
        no.append(sum(path) + shares[0])
        yes.append(sum(path) + log_sum(shares[1:]))
    if not reached or abs(log_sum(reached)) > 1e-6:
        return None
    return log_sum(yes) - log_sum(no)


def log_sum(values: Sequence[float]) -> float:
    """log of the sum of exp."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(x - top) for x in values))


def _log_shares(words: Sequence[float]) -> list[float]:
    total = log_sum(words)
    return [x - total for x in words]
