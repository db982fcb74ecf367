"""Threads that each compute on one core, instead of one computation split over cores.

A split matrix product waits at a barrier for its slowest thread, some thousand times a step. On a machine
that does other work too, each wait can cost a scheduler's time slice (measured: 10 times slower). Whole
shards of a step on single threads wait once. torch releases the interpreter's lock inside its operators, so
threads suffice and share the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


class Workers:
    """`map` runs the first call alone, as compilation on first use should not race; later calls run side
    by side.
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        self._seen: set[str] = set()

    def map(self, work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """Results in the order of items."""
        todo = list(items)
        if work.__qualname__ not in self._seen and todo:
            self._seen.add(work.__qualname__)
            yield work(todo.pop(0))
        yield from self._pool.map(work, todo)
