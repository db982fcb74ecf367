"""Passes of common sizes recorded once as CUDA graphs and replayed.

A pass starts hundreds of kernels, each a few microseconds of the host's time: more than a single prompt's
arithmetic. A graph starts them all at once, but with the same addresses and sizes. So a pass is padded to
one of a few sizes, and its integers and the keys and values that it attends to are copied to where the graph
reads them. What fits no size is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aegis_edge.scoring.cuda_pass import Pass, Sizes

TOKENS = (16, 32, 64, 128, 256, 512)  # new ones
SLOTS = 32  # a verdict has one or two, the categories of a conversation 23
DEEPEST = 6  # policy, prompt, verdict, response, verdict, category
KEPT = 256  # old rows come in multiples of this
MOST_KEPT = 1024
_TILES = 4  # for each that the tokens fill: their ancestors' keys are tiles of their own

Outputs = tuple[Tensor, Tensor]  # logits [slots, rows], normed hidden states [slots, hidden]
Run = Callable[[Tensor, Sizes, Tensor], Outputs]  # (flat integers, sizes, pool of keys and values)
Record = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]


def size_for(tokens: int, kept: int, queries: int) -> Sizes | None:
    """The size that `tokens` new tokens behind `kept` old rows are padded to; None: there is none.

    queries: most tokens of a tile. The size's base is where the new rows start, behind room for the old ones.
    """
    if tokens > TOKENS[-1] or kept > MOST_KEPT:
        return None
    padded = next(size for size in TOKENS if size >= tokens)
    tiles = _TILES * -(-padded // queries) + SLOTS
    return Sizes(padded, SLOTS, SLOTS, tiles, DEEPEST, -(-kept // KEPT) * KEPT)


class Graphs:
    """Recorded passes, by size. Not thread-safe: the scorer's lock is held around it."""

    def __init__(self, run: Run, new_pool: Callable[[int], Tensor], record: Record) -> None:
        """run: one pass; new_pool: memory for the keys and values of so many rows, [layers, 2, rows, width];
        record: turns a function into (what replays it, what it returned, refilled by every replay)."""
        self._run, self._new_pool, self._record = run, new_pool, record
        self._met: set[Sizes] = set()
        self._made: dict[Sizes, tuple[Tensor, Tensor, Callable[[], None], Outputs]] = {}

    def worth(self, sizes: Sizes) -> bool:
        """Whether this size was met before: what comes once is not worth recording."""
        is_known = sizes in self._met
        self._met.add(sizes)
        return is_known

    def __call__(self, one: Pass, sizes: Sizes, old: Tensor, new: Tensor) -> Outputs:
        """Run `one`, padded to `sizes`, which hold it.

        old [layers, 2, n, width]: keys and values of the rows so far; new [layers, 2, tokens, width] is
        filled. What is returned is valid until the next call.
        """
        if sizes not in self._made:
            self._made[sizes] = self._make(sizes, old.device)
        flat, pool, replay, (logits, normed) = self._made[sizes]
        pool[:, :, : old.shape[2]].copy_(old)
        flat.copy_(torch.from_numpy(one.flat(sizes)))
        replay()
        new.copy_(pool[:, :, sizes.base : sizes.base + one.sizes.tokens])
        return logits[: one.sizes.slots], normed[: one.sizes.slots]

    def _make(self, sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor, Callable[[], None], Outputs]:
        nothing = np.zeros(sizes.length, np.int32)  # no tile: nothing is attended to while recording
        flat = torch.from_numpy(nothing).to(device)
        pool = self._new_pool(sizes.base + sizes.tokens)
        replay, outputs = self._record(lambda: self._run(flat, sizes, pool))
        return flat, pool, replay, outputs


def cuda_record() -> Record:
    """Records with torch.cuda.graph; all recordings share their scratch memory, since one runs at a time."""
    memory = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        # Once beside the recording, on a stream of its own: kernels are compiled and loaded, cuBLAS gets its
        # workspace. Neither may happen while recording.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs

    return record
