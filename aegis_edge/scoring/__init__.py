"""The token tree: the one thing an engine has to do.

    policy            node 0, the root
     └ prompt           a node attends to itself (causally) and to its ancestors, never to a sibling
       └ verdict          at its slots the label logits are read:
                          row . h + bias, h = hidden state after the final norm

A token's position is its depth from the root's first token. So a node's logits depend on its own and its
ancestors' ids alone, and not on what else is in the tree: that is what lets a batch be scored in one packed
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aegis_edge.errors import ContextError, ScorerError

IdArray = npt.NDArray[np.int32]
LogitArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Segment:
    """One node to add, or tokens to add to one.

    ids     int32 [n], n >= 1
    parent  number of an earlier node of the tree: 0 is the root; it may belong to the same call
    slots   offsets into `ids` at which the label logits are read
    room    tokens that the node may grow to, where that is more than n
    kept    None; or the number of first tokens that `parent` keeps: no node is added, and `ids` take the
            place of its other tokens. Only where the tree `can_grow`, into a node that has the room, has no
            children, and is not of the same call. What comes later in the call may hang from it
    """

    ids: IdArray
    parent: int
    slots: tuple[int, ...] = ()
    room: int = 0
    kept: int | None = None


class Tree(Protocol):
    """A growing tree over one root. Not thread-safe: one tree a thread.

    can_grow  whether nodes may: a node that grew and one of all its tokens are then the same bits
    """

    can_grow: bool

    def extend(self, segments: Sequence[Segment]) -> LogitArray:
        """Add nodes, numbered on from the last (the first call's first segment is 1), in one packed pass.

        Returns float32 [slots of all segments, rows], in segment order, then slot order. Raises ContextError
        where a path from the root is longer than the context, ScorerError where a segment is malformed; the
        tree is then unchanged.
        """
        ...

    def truncate(self, nodes: int) -> None:
        """Keep only the first `nodes` nodes; the root counts as one."""
        ...

    @property
    def log_sum_exp(self) -> LogitArray | None:
        """Of the full vocabulary's logits at the slots of the last `extend`, float32 [slots]; None unless the
        scorer was given the vocabulary."""
        ...


class Scorer(Protocol):
    """An engine with a guard loaded into it. Safe to use from several threads."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int:
        """Label rows of the head."""
        ...

    @property
    def context(self) -> int:
        """Most tokens on a path from the root's first to a leaf's last."""
        ...

    def tree(self, root: IdArray | None = None) -> Tree:
        """A new tree over the policy the scorer was made for, or over int32 ids [n], computed afresh."""
        ...


class TreeShape:
    """Lengths, parents and depths of a tree's nodes: what every engine has to check before it computes."""

    def __init__(self, root: IdArray, context: int, vocab: int, can_grow: bool = False) -> None:
        self.context, self.vocab, self.can_grow = context, vocab, can_grow
        self.parents: list[int] = []
        self.ends: list[int] = []  # depth of each node's last token, plus one
        self._check_ids(root)
        if len(root) > context:
            raise ContextError(f"the policy has {len(root)} tokens; the context holds {context}")
        self.parents.append(-1)
        self.ends.append(len(root))

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, segments: Sequence[Segment]) -> None:
        """Append the segments as nodes, or to nodes, or raise and change nothing."""
        parents, ends = list(self.parents), list(self.ends)
        for segment in segments:
            self._check_ids(segment.ids)
            n, parent = len(segment.ids), segment.parent
            if not 0 <= parent < len(ends):
                raise ScorerError(f"node {len(ends)} hangs from node {parent}, which does not exist yet")
            if any(not 0 <= slot < n for slot in segment.slots):
                raise ScorerError(f"node {len(ends)} of {n} tokens has slots {segment.slots}")
            if segment.kept is None:
                end = ends[parent] + n
                parents.append(parent)
                ends.append(end)
            elif self.can_grow and parent > 0 and 0 <= segment.kept <= ends[parent] - ends[parents[parent]]:
                end = ends[parent] = ends[parents[parent]] + segment.kept + n
            else:
                raise ScorerError(f"node {parent} can not grow from its token {segment.kept} on")
            if end > self.context:
                raise ContextError(f"a path of {end} tokens does not fit a context of {self.context}")
        self.parents, self.ends = parents, ends

    def truncate(self, nodes: int) -> None:
        """Keep the first `nodes` nodes."""
        if not 1 <= nodes <= len(self):
            raise ScorerError(f"can not keep {nodes} of {len(self)} nodes")
        del self.parents[nodes:], self.ends[nodes:]

    def _check_ids(self, ids: IdArray) -> None:
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype != np.int32:
            raise ScorerError(f"a node needs int32 ids [n >= 1], found {ids.dtype}{list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise ScorerError(f"an id lies outside the vocabulary of {self.vocab}")
