"""Interleaved timing: one turn each a round, so that a machine that slows down slows everybody down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

# A turn takes this long, or one call where that is longer: enough calls of the fast for their tail to show.
TURN_SECONDS = 0.1
TURN_CALLS = 25
# Between turns, so that threads of the scorer before that still spin have gone to sleep (OpenMP: some
# milliseconds).
PAUSE_SECONDS = 0.02
# A call this long needs no warm-up: caches are a small part of it.
SLOW_SECONDS = 1.0
FEWEST_SAMPLES = 3


@dataclass
class Series:
    """Durations of one call, in seconds. Turns stop once `budget` seconds are spent, but not before
    FEWEST_SAMPLES."""

    name: str
    call: Callable[[], object]
    budget: float = math.inf
    samples: list[float] = field(default_factory=list)
    spent: float = 0.0

    def turn(self) -> None:
        """A warm-up call, then timed ones."""
        if self.spent > self.budget and len(self.samples) >= FEWEST_SAMPLES:
            return
        start = time.perf_counter()
        if not self.samples or min(self.samples) < SLOW_SECONDS:
            self.call()
        deadline = time.perf_counter() + TURN_SECONDS
        for _ in range(TURN_CALLS):
            before = time.perf_counter()
            self.call()
            after = time.perf_counter()
            self.samples.append(after - before)
            if after > deadline:
                break
        self.spent += time.perf_counter() - start


class Turns(Protocol):
    def turn(self) -> None:
        """Does and measures what is to be measured, once or some times."""


def interleave(series: Sequence[Turns], rounds: int, done: Callable[[], None] = lambda: None) -> None:
    """`rounds` turns each; who begins changes from round to round. `done` is called after every turn."""
    for number in range(rounds):
        shift = number % max(1, len(series))
        for one in (*series[shift:], *series[:shift]):
            time.sleep(PAUSE_SECONDS)
            one.turn()
            done()


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
