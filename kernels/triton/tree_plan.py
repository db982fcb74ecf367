"""Which queries read which keys in one packed pass over a token tree, as tiles for `tree_attention`.

New nodes are packed in depth-first order over the whole tree. Then the new queries at and below any node, old
or new, are one run of rows, and its keys are read in tiles of that run. The causal rule is one comparison:
the key of the token at packed row t stands at row `base + t` of the cache, and whatever of its path stands
after that row is its future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Plan:
    """starts   packed row of each new node's first token, in node order
    positions  int32 [T]: depth of each packed token from the root's first
    levels     int32 [T]: nodes on each token's path, its own included
    tiles      int32 [n, 5]: query rows begin, end; key rows of the cache begin, end; level of the key's node
    """

    starts: tuple[int, ...]
    positions: npt.NDArray[np.int32]
    levels: npt.NDArray[np.int32]
    tiles: npt.NDArray[np.int32]


def plan(
    ranges: Sequence[tuple[int, int]],
    parents: Sequence[int],
    lengths: Sequence[int],
    base: int,
    queries: int,
) -> Plan:
    """The pass that adds nodes of `lengths` tokens after the old ones, whose cache rows are `ranges`.

    parents: of all nodes, -1 for the root, each before its children; base: cache row of the first packed
    token; queries: most tokens of a tile.
    """
    old, count = len(ranges), len(parents)
    children: list[list[int]] = [[] for _ in range(count)]
    for node in range(1, count):
        children[parents[node]].append(node)
    depth, level = [0] * count, [1] * count  # of a node's first token; nodes on its path
    tokens = [end - begin for begin, end in ranges] + list(lengths)
    for node in range(1, count):
        depth[node] = depth[parents[node]] + tokens[parents[node]]
        level[node] = level[parents[node]] + 1
    starts, ends = [0] * count, [0] * count  # rows of the new tokens at and below each node
    packed, stack = 0, [(0, False)]
    order = []
    while stack:
        node, done = stack.pop()
        if done:
            ends[node] = packed
            continue
        starts[node] = packed
        if node >= old:
            order.append(node)
            packed += tokens[node]
        stack.append((node, True))
        stack += [(child, False) for child in reversed(children[node])]
    tiles = []
    for node in range(count):
        own = base + starts[node]
        keys = ranges[node] if node < old else (own, own + tokens[node])
        for begin in range(starts[node], ends[node], queries):
            end = min(begin + queries, ends[node])
            # Keys after the tile's last query are its future: only in the node's own tokens there are any.
            tiles.append((begin, end, keys[0], min(keys[1], base + end), level[node] - 1))
    return Plan(
        tuple(starts[old:]),
        np.concatenate([depth[n] + np.arange(tokens[n], dtype=np.int32) for n in order]).astype(np.int32),
        np.repeat([level[n] for n in order], [tokens[n] for n in order]).astype(np.int32),
        np.array(tiles, np.int32),
    )
