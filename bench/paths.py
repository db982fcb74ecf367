"""Engines that run sequences, made into scorers: every node that is read becomes the sequence of ids that
leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aegis_edge.bench.contender import Source
from aegis_edge.scoring import IdArray, LogitArray, Segment, TreeShape
from aegis_edge.scoring.vocabulary import softcapped

HiddenArray = npt.NDArray[np.float32]


class Engine(Protocol):
    """All that a peer has to write."""

    context: int

    def prefix(self, root: IdArray) -> Any:
        """Whatever `run` needs to know of a root, int32 [P]: its cached keys and values, or just its ids."""
        ...

    def run(self, prefix: Any, paths: Sequence[IdArray], slots: Sequence[Sequence[int]]) -> HiddenArray:
        """Hidden states after the final norm, float32 [all slots, hidden], of sequences that follow the root.

        paths  int32 [n] each
        slots  for each path the offsets into it, ascending
        """
        ...


class PathScorer:
    """An engine as a scorer: see scoring.Scorer. The head is applied here, in fp32."""

    def __init__(self, name: str, engine: Engine, source: Source) -> None:
        self.name, self._engine, self._root = name, engine, source.root
        self._weight, self._bias = source.head()
        self._softcap = source.softcap
        self.rows = len(self._bias)
        self.context = engine.context
        self.vocab = int(source.manifest["model"]["vocab"])
        self._prefixes: dict[bytes, Any] = {}

    def tree(self, root: IdArray | None = None) -> PathTree:
        """A tree over the guard's policy or over int32 ids [n]; a root is prepared once and kept."""
        root = self._root if root is None else root
        if root.tobytes() not in self._prefixes:
            self._prefixes[root.tobytes()] = self._engine.prefix(root)
        return PathTree(self, root, self._prefixes[root.tobytes()])

    def logits(self, prefix: Any, paths: Sequence[IdArray], slots: Sequence[Sequence[int]]) -> LogitArray:
        """Label logits float32 [all slots, rows]."""
        hidden = self._engine.run(prefix, paths, slots)
        return softcapped(hidden @ self._weight.T + self._bias, self._softcap)


class PathTree:
    """See scoring.Tree. Nothing but the root is kept from one call to the next."""

    can_grow = False

    def __init__(self, scorer: PathScorer, root: IdArray, prefix: Any) -> None:
        self._scorer, self._prefix = scorer, prefix
        self._shape = TreeShape(root, scorer.context, scorer.vocab)
        self._nodes = [root]

    log_sum_exp: LogitArray | None = None  # peers are not asked for label mass

    def extend(self, segments: Sequence[Segment]) -> LogitArray:
        first = len(self._nodes)
        self._shape.add(segments)
        self._nodes += [segment.ids for segment in segments]
        reading = [first + i for i, segment in enumerate(segments) if segment.slots]
        chains = {node: self._chain(node) for node in reading}
        # A node that another one hangs from is read on the way to it: a response's path holds its prompt's
        # verdict.
        inner = {node for chain in chains.values() for node in chain[:-1]}
        paths: list[IdArray] = []
        read: list[list[int]] = []
        place: dict[tuple[int, int], int] = {}
        for leaf in (node for node in reading if node not in inner):
            offsets: list[int] = []
            depth = 0
            for node in chains[leaf]:
                if node >= first:
                    for slot in sorted(segments[node - first].slots):
                        if (node, slot) not in place:
                            place[node, slot] = sum(map(len, read)) + len(offsets)
                            offsets.append(depth + slot)
                depth += len(self._nodes[node])
            paths.append(np.concatenate([self._nodes[node] for node in chains[leaf]])[: offsets[-1] + 1])
            read.append(offsets)
        if not paths:
            return np.empty((0, self._scorer.rows), np.float32)
        logits = self._scorer.logits(self._prefix, paths, read)
        wanted = [place[node, slot] for node in reading for slot in segments[node - first].slots]
        return logits[wanted]

    def truncate(self, nodes: int) -> None:
        self._shape.truncate(nodes)
        del self._nodes[nodes:]

    def _chain(self, node: int) -> list[int]:
        """The nodes from below the root to `node`."""
        chain = []
        while node > 0:
            chain.append(node)
            node = self._shape.parents[node]
        return chain[::-1]


def shared(one: IdArray, other: IdArray) -> int:
    """Ids that both begin with, int32 [n] each."""
    least = min(len(one), len(other))
    different = np.flatnonzero(one[:least] != other[:least])
    return int(different[0]) if len(different) else least
