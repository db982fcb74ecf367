"""A token tree that is kept from one pass to the next: what a growing conversation computes but once.

A node that grows is held as a chain of nodes, all but the last of a multiple of 16 tokens. The compiled
runtime keeps the keys of every node in blocks of 16 and sums over them block by block, so such a chain and
one node of all its tokens are the same arithmetic, bit for bit (tested; cut at other places they are not).
Where nodes can grow, the last one goes on where its text does, up to its room; elsewhere the last, shorter
node is computed anew each time. The verdict under it always is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis_edge.decision import Outcome
from aegis_edge.encoding import Encoded
from aegis_edge.passes import Asked, Passes, Reading, extend
from aegis_edge.scoring import IdArray, LogitArray, Segment, Tree

BLOCK = 16
ROOM = 128  # a growing node's is a multiple of it: most chunks go on in the node that there is


@dataclass(eq=False)
class _Node:
    """A node of the tree, with what was read at it: its slot's row of logits, and rows of leaves under it."""

    ids: IdArray
    parent: _Node | None
    slots: tuple[int, ...] = ()
    room: int = 0
    number: int = 0
    stays: bool = True
    row: LogitArray | None = None
    log_sum_exp: LogitArray | None = None
    leaves: dict[str, LogitArray] = field(default_factory=dict)
    children: list[_Node] = field(default_factory=list)

    def begins(self, ids: IdArray, slots: tuple[int, ...]) -> bool:
        """Whether a node of these ids and slots is this one, or a chain that begins with it."""
        n = len(self.ids)
        if slots != self.slots or n > len(ids) or (n < len(ids) and (slots or n % BLOCK)):
            return False
        return bool((self.ids == ids[:n]).all())


@dataclass(frozen=True, eq=False)
class _Start:
    """A node that can be grown: its first `kept` tokens stay; `ids` are what it and the nodes behind it shall
    hold, those tokens included."""

    node: _Node
    kept: int
    ids: IdArray


class Growth:
    """Judges conversations in one tree and keeps what the next ones can use. Not thread-safe."""

    def __init__(self, passes: Passes, tree: Tree) -> None:
        """`tree` holds the policy alone."""
        self._passes, self._tree = passes, tree
        self._root = _Node(np.zeros(0, np.int32), None)
        self._nodes: list[_Node] = []  # number 1 and on
        self._growing: dict[_Node, int] = {}  # nodes that go on in this pass, and how many tokens they keep

    def judge(self, conversations: Sequence[Encoded]) -> list[Outcome]:
        """What each is found to be; only tokens that the tree does not hold yet are computed."""
        self._cut(conversations)
        grown: list[Segment] = []
        new: list[_Node] = []
        paths = [self._add(encoded, grown, new) for encoded in conversations]
        # A tree is cut from its end: what the next pass needs again comes first.
        new.sort(key=lambda node: not node.stays)
        for node in new:
            self._nodes.append(node)
            node.number = len(self._nodes)
        if new or grown:
            self._compute(grown, new)
        return self._passes.outcomes(
            [_reading(*found) for found in zip(conversations, paths, strict=True)], self._leaves
        )

    def _cut(self, conversations: Sequence[Encoded]) -> None:
        """Drop the first node that none of these conversations has or goes on from, and all behind it."""
        used: set[_Node] = set()
        starts: list[_Start] = []
        for encoded in conversations:
            ends: list[_Node | None] = [self._root]
            for segment in encoded.segments:
                parent = ends[segment.parent]
                chain, rest = ([], segment.ids) if parent is None else _walk(parent, segment)
                start = None if parent is None else _start(parent, chain, segment, rest)
                starts += [start] if start is not None else []
                used.update(node for node in chain if start is None or node is not start.node)
                ends.append(None if len(rest) else chain[-1])
        # A node goes on with one text only, and with none where its own is still asked for.
        self._growing = {}
        for start in starts:
            if start.node not in used:
                self._growing.setdefault(start.node, start.kept)
        kept = used | set(self._growing)
        keep = next((i for i, node in enumerate(self._nodes) if node not in kept), len(self._nodes))
        for node in self._nodes[keep:]:
            assert node.parent is not None
            node.parent.children.remove(node)
        del self._nodes[keep:]
        self._tree.truncate(keep + 1)

    def _add(self, encoded: Encoded, grown: list[Segment], new: list[_Node]) -> list[_Node]:
        """The last node of every segment, in order. What the tree lacks is appended to `grown` where a node
        of it goes on, and to `new`."""
        growing = max(i for i, segment in enumerate(encoded.segments) if not segment.slots or i == 0)
        can_grow = self._tree.can_grow
        ends = [self._root]
        for index, segment in enumerate(encoded.segments):
            parent = ends[segment.parent]
            chain, rest = _walk(parent, segment)
            start = _start(parent, chain, segment, rest)
            if start is not None and self._growing.pop(start.node, None) == start.kept:
                end, rest = start.node, start.ids[start.node.room :]
                end.ids = start.ids[: end.room]
                end.leaves.clear()
                grown.append(Segment(end.ids[start.kept :], end.number, kept=start.kept))
            else:
                end = chain[-1] if chain else parent
            whole = len(rest) if can_grow else 0 if segment.slots else len(rest) // BLOCK * BLOCK
            for ids, is_block in ((rest[:whole], True), (rest[whole:], False)):
                if len(ids) == 0:
                    continue
                stays = index < growing or (index == growing and is_block)
                for ancestor in _ancestors(end) if stays else ():
                    ancestor.stays = True
                room = (
                    -(-len(ids) // ROOM) * ROOM if can_grow and index == growing and not segment.slots else 0
                )
                end.children.append(node := _Node(ids, end, segment.slots, room, stays=stays))
                new.append(node)
                end = node
            ends.append(end)
        return ends[1:]

    def _compute(self, grown: Sequence[Segment], new: Sequence[_Node]) -> None:
        segments = [
            Segment(node.ids, node.parent.number, node.slots, node.room)
            for node in new
            if node.parent is not None
        ]
        logits, total = extend(self._tree, [*grown, *segments]), self._tree.log_sum_exp
        for row, node in enumerate(node for node in new if node.slots):
            node.row = logits[row]
            node.log_sum_exp = None if total is None else total[row : row + 1]

    def _leaves(self, asked: list[Asked]) -> Iterator[LogitArray]:
        wanted = [(self._nodes[number - 1], key) for number, key in asked]
        missing = list(dict.fromkeys((node, key) for node, key in wanted if key not in node.leaves))
        at = [(node.number, key) for node, key in missing]
        rows = self._passes.leaves(self._tree, len(self._nodes) + 1, at)
        for (node, key), leaves in zip(missing, rows, strict=True):
            node.leaves[key] = leaves
        return iter([node.leaves[key] for node, key in wanted])


def _walk(parent: _Node, segment: Segment) -> tuple[list[_Node], IdArray]:
    """The chain under `parent` that holds the beginning of a segment, and the ids that are left."""
    chain, ids = [], segment.ids
    while len(ids):
        child = next((child for child in parent.children if child.begins(ids, segment.slots)), None)
        if child is None:
            break
        chain.append(child)
        parent, ids = child, ids[len(child.ids) :]
    return chain, ids


def _start(parent: _Node, chain: list[_Node], segment: Segment, rest: IdArray) -> _Start | None:
    """Where the ids that are left go on in a node that has room: in one that begins as they do, or else in
    the last of the chain that holds those before."""
    if len(rest) == 0 or segment.slots:
        return None
    end = chain[-1] if chain else parent
    # One token at least is computed: a text that became shorter ends at a token whose keys are there already.
    shared = [
        (min(common(child.ids, rest), len(rest) - 1, child.room - 1), child)
        for child in end.children
        if child.room
    ]
    kept, child = max(shared, key=lambda one: one[0], default=(0, end))
    if kept:
        return _Start(child, kept, rest)
    if chain and end.room > len(end.ids):
        return _Start(end, len(end.ids), np.concatenate([end.ids, rest]))
    return None


def common(a: IdArray, b: IdArray) -> int:
    """Length of the longest beginning that two arrays of ids share."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n


def _ancestors(node: _Node | None) -> Iterator[_Node]:
    while node is not None:
        yield node
        node = node.parent


def _reading(encoded: Encoded, ends: Sequence[_Node]) -> Reading:
    read = [ends[number - 1] for number in encoded.judged]
    totals = [node.log_sum_exp for node in read if node.log_sum_exp is not None]
    return Reading(
        encoded.reads,
        encoded.given,
        np.stack([node.row for node in read if node.row is not None]),
        np.concatenate(totals) if totals else None,
        tuple(node.number for node in read),
        ends[encoded.last - 1].number,
    )
