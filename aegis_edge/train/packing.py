"""Examples to packs: token trees laid out as padded batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aegis_edge.train.model import Group, Pack
from aegis_edge.train.prompt import PromptEncoder

PROMPT, RESPONSE, CATEGORY = 0, 1, 2  # slot kinds; a kind's logits are rows 2 kind and 2 kind + 1


@dataclass(frozen=True)
class Example:
    """What to score and the labels to learn. `leaves` are (category text, holds); None labels have a slot but
    no loss.
    """

    prompt: str
    response: str | None
    unsafe: bool | None
    response_unsafe: bool | None
    leaves: tuple[tuple[str, bool], ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Tokens:
    """One example as ids: leaf 0 is the trunk, k the k-th leaf; depth counts from the end of the root."""

    ids: np.ndarray
    depth: np.ndarray
    leaf: np.ndarray
    slots: tuple[tuple[int, int, int], ...]  # (offset, kind, label)


@dataclass(frozen=True)
class Batch:
    """A pack with its targets, all int64 [S]: slot kind, label (0 or 1), and the example's number."""

    pack: Pack
    kinds: Tensor
    labels: Tensor
    owners: Tensor


def tokenise(example: Example, encoder: PromptEncoder, limit: int, response_limit: int) -> Tokens:
    ids = [*encoder.clipped(example.prompt, limit), encoder.end]
    slots: list[tuple[int, int, int]] = []
    if example.unsafe is not None:
        slots.append((len(ids) - 1, PROMPT, int(example.unsafe)))
    if example.response is not None:
        ids += [*encoder.response(encoder.clipped(example.response, response_limit)), encoder.end]
        if example.response_unsafe is not None:
            slots.append((len(ids) - 1, RESPONSE, int(example.response_unsafe)))
    trunk = len(ids)
    depth, leaf = list(range(trunk)), [0] * trunk
    for number, (category, holds) in enumerate(example.leaves, 1):
        piece = encoder.leaf(category)
        ids += piece
        depth += range(trunk, trunk + len(piece))
        leaf += [number] * len(piece)
        slots.append((len(ids) - 1, CATEGORY, int(holds)))
    return Tokens(np.asarray(ids), np.asarray(depth), np.asarray(leaf), tuple(slots))


def _split(lengths: Sequence[int], overhead: int) -> list[int]:
    """Where to cut a descending list of lengths into groups so that padding + `overhead` a group is least."""
    best, cut = [0], [0]
    for end in range(1, len(lengths) + 1):
        costs = [(best[s] + lengths[s] * (end - s) + overhead, s) for s in range(end)]
        cost, start = min(costs)
        best.append(cost)
        cut.append(start)
    cuts, end = [], len(lengths)
    while end:
        cuts.append(end)
        end = cut[end]
    return cuts[::-1]


def make_batch(tokens: Sequence[Tokens], overhead: int = 64) -> Batch:
    """Lay examples out in groups. Owners number the examples as given."""
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i].ids))
    lengths = [len(tokens[i].ids) for i in order]
    groups, start, base = [], 0, 0
    rows: list[tuple[int, int, int, int]] = []
    for end in _split(lengths, overhead):
        members, width = order[start:end], lengths[start]
        ids = np.zeros((len(members), width), np.int64)
        depth = np.zeros((len(members), width), np.int64)
        leaf = np.full((len(members), width), -1, np.int64)
        for row, number in enumerate(members):
            t = tokens[number]
            ids[row, : len(t.ids)], depth[row, : len(t.ids)], leaf[row, : len(t.ids)] = t.ids, t.depth, t.leaf
            rows += [(base + row * width + offset, kind, label, number) for offset, kind, label in t.slots]
        # A token looks at earlier tokens of the trunk and of its own leaf; padding is looked at by padding
        # only.
        sees = (leaf[:, None, :] == 0) | (leaf[:, None, :] == leaf[:, :, None])
        sees &= np.tri(width, dtype=bool)
        mask = torch.zeros(sees.shape).masked_fill_(torch.from_numpy(~sees), -torch.inf)
        groups.append(Group(torch.from_numpy(ids), torch.from_numpy(depth), mask))
        start, base = end, base + len(members) * width
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
    return Batch(Pack(tuple(groups), table[:, 0]), table[:, 1], table[:, 2], table[:, 3])
