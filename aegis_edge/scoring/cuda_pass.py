"""What one packed pass over the tree needs on the GPU: a few integer arrays, in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from aegis_edge.scoring import IdArray
from aegis_edge.triton.tree_plan import plan

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sizes:
    """Of a pass. slots: positions read; fine: rows with a second digit; deepest: most nodes on a path; base:
    row of the cache that the first new token gets."""

    tokens: int
    slots: int
    fine: int
    tiles: int
    deepest: int
    base: int

    def holds(self, other: Sizes) -> bool:
        """Whether a pass of `other`, planned for the same base, can be padded to this."""
        mine, theirs = ((s.tokens, s.slots, s.fine, s.tiles, s.deepest) for s in (self, other))
        return self.base == other.base and all(a >= b for a, b in zip(mine, theirs, strict=True))

    @property
    def length(self) -> int:
        """Integers in `Pass.flat`."""
        return 4 * self.tokens + self.slots + 5 * self.tiles

    def views(self, flat: Tensor) -> tuple[Tensor, ...]:
        """(ids, positions, levels, low_of [tokens] each, slots [slots], tiles [tiles, 5]) in int32
        [length]."""
        parts = flat.split([self.tokens] * 4 + [self.slots, 5 * self.tiles])
        return (*parts[:-1], parts[-1].view(-1, 5))


@dataclass(frozen=True, eq=False)
class Pass:
    """int32 arrays of a pass: by packed token its id, depth from the root, nodes on its path, and its second
    digit's row or -1 (`ids`, `positions`, `levels`, `low_of`); `slots`: packed rows to read; `tiles` of
    attention (tree_plan.py). starts: packed row of each new node's first token."""

    sizes: Sizes
    starts: tuple[int, ...]
    ids: Ints
    positions: Ints
    levels: Ints
    low_of: Ints
    slots: Ints
    tiles: Ints

    def flat(self, sizes: Sizes) -> Ints:
        """The arrays one behind the other, padded to `sizes`.

        A token of the padding is on no path and in no tile: its rows are computed, and read by nobody.
        """
        made = np.zeros(sizes.length, np.int32)
        at = 0
        columns = ((self.ids, 0), (self.positions, 0), (self.levels, 0), (self.low_of, -1))
        for array, blank in columns:
            made[at : at + len(array)] = array
            made[at + len(array) : at + sizes.tokens] = blank
            at += sizes.tokens
        made[at : at + len(self.slots)] = self.slots
        at += sizes.slots
        made[at : at + self.tiles.size] = self.tiles.ravel()
        return made


def pack(
    ranges: Sequence[tuple[int, int]],
    parents: Sequence[int],
    ids: Sequence[IdArray],
    slots: Sequence[Sequence[int]],
    base: int,
    queries: int,
) -> Pass:
    """The pass that adds nodes of `ids`, read at `slots`, behind old ones; the rest as in `tree_plan.plan`.

    As in the compiled runtime, the slots' rows have second digits, and in a policy's pass, which is a root
    that nothing is read of, all rows.
    """
    made = plan(ranges, parents, [len(one) for one in ids], base, queries)
    tokens = len(made.levels)
    packed = np.empty(tokens, np.int32)
    for start, one in zip(made.starts, ids, strict=True):
        packed[start : start + len(one)] = one
    pairs = zip(made.starts, slots, strict=True)
    reads = np.array([start + slot for start, some in pairs for slot in some], np.int32)
    fine = np.arange(tokens, dtype=np.int32) if list(parents) == [-1] else reads
    low_of = np.full(tokens, -1, np.int32)
    low_of[fine] = np.arange(len(fine), dtype=np.int32)
    sizes = Sizes(tokens, len(reads), len(fine), len(made.tiles), int(made.levels.max()), base)
    return Pass(sizes, made.starts, packed, made.positions, made.levels, low_of, reads, made.tiles)
