"""Passes over token trees: conversations' nodes in, what was found out.

Two passes judge a run of conversations. The first adds their nodes under the policy and reads their turns;
the second, for the unsafe ones alone, adds a leaf a category. The tree is then cut back to the policy and
used again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from aegis_edge.decision import CategoryScore, Decider, Outcome, Rating, merged
from aegis_edge.encoding import ConversationEncoder, Encoded
from aegis_edge.errors import ScorerError
from aegis_edge.families.plan import Given
from aegis_edge.scoring import IdArray, LogitArray, Scorer, Segment, Tree

# Tokens added in one pass, unless a single conversation has more. A pass this long is compute-bound: a longer
# one is no faster and takes more memory (in the 135M model a token's keys and values alone are 23 kB).
# Results do not depend on it.
CHUNK_TOKENS = 2048

Asked = tuple[int, str]  # a node, and the plan's list whose leaves are read under it; "": the policy's leaves
_NONE = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Reading:
    """A conversation's slots as they were read.

    questions    of each slot
    given        the answers that each slot follows
    logits       float32 [slots, rows]
    log_sum_exp  float32 [slots], or None; see `Tree`
    nodes        number of each slot's node in the tree
    last         number of the node from which category leaves hang
    """

    questions: tuple[str, ...]
    given: tuple[Given, ...]
    logits: LogitArray
    log_sum_exp: LogitArray | None
    nodes: tuple[int, ...]
    last: int


class Passes:
    """Judges encoded conversations. Safe to use from several threads: each call has a tree of its own."""

    def __init__(
        self,
        scorer: Scorer,
        root: IdArray | None,
        encoder: ConversationEncoder,
        decider: Decider,
        leaf_tokens: int,
    ) -> None:
        """`root`: as in `Guard`. `leaf_tokens`: most ids of all leaves under one node."""
        self._scorer, self._root, self._encoder, self._decider = scorer, root, encoder, decider
        self._leaf_tokens = leaf_tokens
        # A deque's pop and append are atomic: no lock that a fork could leave held.
        self._idle: deque[Tree] = deque(maxlen=os.cpu_count() or 1)

    def judge(self, conversations: Sequence[Encoded]) -> list[Outcome]:
        """What each is found to be, in order; the same bits whatever their neighbours."""
        return [outcome for chunk in _chunks(conversations) for outcome in self._judge(chunk)]

    def _judge(self, chunk: Sequence[Encoded]) -> list[Outcome]:
        with self.tree() as tree:
            segments: list[Segment] = []
            firsts = []  # each conversation's nodes are numbered from here on, as they are from 0 alone
            for encoded in chunk:
                firsts.append(len(segments))
                segments += encoded.at(len(segments) + 1)
            logits, total = extend(tree, segments), tree.log_sum_exp
            readings, row = [], 0
            for first, encoded in zip(firsts, chunk, strict=True):
                rows = slice(row, row + len(encoded.reads))
                nodes = tuple(first + node for node in encoded.judged)
                sums = None if total is None else total[rows]
                last = first + encoded.last
                readings.append(Reading(encoded.reads, encoded.given, logits[rows], sums, nodes, last))
                row = rows.stop
            return self.outcomes(readings, lambda asked: self.leaves(tree, len(segments) + 1, asked))

    def outcomes(
        self, readings: Sequence[Reading], leaves: Callable[[list[Asked]], Iterator[LogitArray]]
    ) -> list[Outcome]:
        """Readings to outcomes. `leaves` gives the label logits [leaves, rows] of all that is asked, in
        order."""
        decider = self._decider
        ratings = [decider.ratings(r.questions, r.logits, r.given) for r in readings]
        masses = [
            None if r.log_sum_exp is None else decider.mass(r.questions, r.logits, r.log_sum_exp)
            for r in readings
        ]
        refusals = [
            decider.refusal(r.questions, r.logits, r.given, found)
            for r, found in zip(readings, ratings, strict=True)
        ]
        claimed: list[tuple[CategoryScore, ...]]
        if decider.by_categories:
            rows = leaves([(node, "") for reading in readings for node in reading.nodes])
            claimed = [self._judged_by_categories(found, rows) for found in ratings]
        elif decider.has_leaves:
            unsafe = [i for i, found in enumerate(ratings) if not all(r.safe for r in found.values())]
            rows = leaves([(readings[i].last, "") for i in unsafe])
            claims = {i: decider.categories(row) for i, row in zip(unsafe, rows, strict=True)}
            claimed = [claims.get(i, ()) for i in range(len(readings))]
        else:
            lists = [
                (i, *asked)
                for i, (r, found) in enumerate(zip(readings, ratings, strict=True))
                for asked in decider.lists(r.questions, r.given, found)
            ]
            rows = leaves([(readings[i].nodes[slot], key) for i, slot, _, key in lists])
            for (i, _, question, key), row in zip(lists, rows, strict=True):
                scores, refusal = decider.listed(key, row)
                ratings[i][question] = replace(ratings[i][question], categories=scores)
                refusals[i] = refusals[i] if refusal is None else refusal
            claimed = [merged(c for r in found.values() for c in r.categories) for found in ratings]
        return [Outcome(*found) for found in zip(ratings, claimed, masses, refusals, strict=True)]

    def _judged_by_categories(
        self, found: dict[str, Rating], rows: Iterator[LogitArray]
    ) -> tuple[CategoryScore, ...]:
        """A conversation's categories, its ratings changed to what they claim. rows: the leaves' logits under
        every rating's node."""
        claims: list[CategoryScore] = []
        for question in found:
            found[question], claimed = self._decider.by_policy(found[question], next(rows))
            claims += claimed
        return merged(claims)

    def leaves(self, tree: Tree, nodes: int, asked: Sequence[Asked]) -> Iterator[LogitArray]:
        """Label logits [leaves, rows] of all that is asked, in a tree that is cut back to `nodes` nodes each
        time."""
        at_once = max(1, CHUNK_TOKENS // max(1, self._leaf_tokens))
        for start in range(0, len(asked), at_once):
            batch = [self._encoder.leaves(*one) for one in asked[start : start + at_once]]
            # A list of one category has nothing to ask.
            logits = extend(tree, leaves) if (leaves := [leaf for one in batch for leaf in one]) else _NONE
            tree.truncate(nodes)
            yield from np.split(logits, np.cumsum([len(one) for one in batch])[:-1])

    @contextmanager
    def tree(self) -> Iterator[Tree]:
        """A tree that holds the policy alone. One whose use raised is dropped: its state is unknown."""
        try:
            tree = self._idle.pop()
        except IndexError:
            tree = self._scorer.tree(self._root)
        yield tree
        tree.truncate(1)
        self._idle.append(tree)


def _chunks(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Runs of conversations of at most CHUNK_TOKENS together; a longer conversation is a run of its own."""
    chunk: list[Encoded] = []
    size = 0
    for one in encoded:
        if chunk and size + one.size > CHUNK_TOKENS:
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += one.size
    if chunk:
        yield chunk


def extend(tree: Tree, segments: Sequence[Segment]) -> LogitArray:
    """`tree.extend`, held to a row a slot: with one missing, verdicts would move to other conversations."""
    logits = tree.extend(segments)
    slots = sum(len(segment.slots) for segment in segments)
    if len(logits) != slots:
        raise ScorerError(f"the scorer returned {len(logits)} rows of logits for {slots} slots")
    return logits
