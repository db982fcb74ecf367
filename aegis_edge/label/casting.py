"""All judges asked about all rows, by threads; one thread, the caller's, writes the journal.

Every judge has threads of its own, so that a slow one holds up no other. An opinion is in the journal before
it is counted. Whatever ends the run (an exception in a thread, an interrupt) stops the threads, and what they
had learnt till then is still written.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aegis_edge.label.journal import Journal, Key, key_of
from aegis_edge.label.rows import Row
from aegis_edge.label.votes import UNREACHABLE, Abstention, Opinion, Vote

# After a stop: s to wait for answers that are under way. Beyond that they are lost, and asked again.
PATIENCE = 2.0


class Judge(Protocol):
    """What casts votes.

    digest         of all that its votes depend on
    concurrency    threads that may call `judge` at once
    give_up_after  rows in a row without reaching it until it is asked no more; 0: never
    """

    name: str
    digest: str
    concurrency: int
    give_up_after: int

    def judge(self, row: Row, stop: threading.Event) -> Opinion:
        """An opinion of a row with a response; returns soon once `stop` is set."""
        ...


@dataclass
class Casting:
    """What came of asking.

    opinions   of every row's key, by judge in the jury's order
    resumed    votes by judge that the journal held already
    given_up   why, by judge that was asked no more
    """

    opinions: dict[tuple[str, str], dict[str, Opinion]]
    resumed: Counter[str] = field(default_factory=Counter)
    given_up: dict[str, str] = field(default_factory=dict)


class _Desk:
    """One judge's pending rows, and whether it can be reached."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.pending: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self.given_up: str | None = None
        self._failures = 0  # in a row
        self._lock = threading.Lock()

    def note(self, opinion: Opinion) -> None:
        """Give the judge up when this was one failure to reach it too many."""
        with self._lock:
            unreachable = isinstance(opinion, Abstention) and opinion.cause in UNREACHABLE
            self._failures = self._failures + 1 if unreachable else 0
            if isinstance(opinion, Abstention) and 0 < self.judge.give_up_after == self._failures:
                self.given_up = f"{self._failures} rows in a row failed, the last: {opinion.reason}"


_Result = tuple[_Desk, Row, Opinion] | BaseException | None


def cast(
    judges: Sequence[Judge],
    rows: Iterable[Row],
    journal: Journal,
    done: Callable[[int], None] = lambda _: None,
) -> Casting:
    """Ask every judge about every row once, but for votes that the journal holds.

    `done(n)` is called for n opinions more. Raises what a thread raised (the others' as notes on it), and
    JournalError.
    """
    keyed = {row.key: row for row in rows}  # the same question is asked once
    casting = Casting({key: {} for key in keyed})
    desks = [_Desk(judge) for judge in judges]
    for desk in desks:
        for key, row in keyed.items():
            name = desk.judge.name
            vote = journal.votes.get(key_of(row, name, desk.judge.digest))
            casting.opinions[key][name] = vote or Abstention("not asked", "not asked yet")
            if vote is None:
                desk.pending.put(row)
            else:
                casting.resumed[name] += 1
    done(sum(casting.resumed.values()))
    _ask(desks, casting, journal, done)
    for desk in desks:
        if desk.given_up is not None:
            casting.given_up[desk.judge.name] = desk.given_up
            unasked = Abstention("not asked", f"given up: {desk.given_up}")
            while not desk.pending.empty():
                casting.opinions[desk.pending.get().key][desk.judge.name] = unasked
                done(1)
    return casting


def _ask(desks: Sequence[_Desk], casting: Casting, journal: Journal, done: Callable[[int], None]) -> None:
    results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=_work, args=(desk, results, stop), name=f"judge-{desk.judge.name}", daemon=True
        )
        for desk in desks
        for _ in range(min(desk.judge.concurrency, desk.pending.qsize()))
    ]
    running = len(threads)
    raised: list[BaseException] = []

    def take(batch: Sequence[_Result]) -> None:
        nonlocal running
        running -= sum(result is None for result in batch)
        raised.extend(result for result in batch if isinstance(result, BaseException))
        opinions = [result for result in batch if isinstance(result, tuple)]
        _keep(opinions, casting, journal)
        done(len(opinions))

    for thread in threads:
        thread.start()
    try:
        while running and not raised:
            take(_drain(results, wait=True))
    finally:
        stop.set()
        limit = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
        take(_drain(results, wait=False))
    if raised:
        for other in raised[1:]:
            raised[0].add_note(f"and in another thread: {type(other).__name__}: {other}")
        raise raised[0]


def _work(desk: _Desk, results: queue.SimpleQueue[_Result], stop: threading.Event) -> None:
    try:
        while not stop.is_set() and desk.given_up is None:
            try:
                row = desk.pending.get_nowait()
            except queue.Empty:
                break
            opinion = desk.judge.judge(row, stop)
            desk.note(opinion)
            if isinstance(opinion, Vote) or opinion.cause != "not asked":
                results.put((desk, row, opinion))
    except BaseException as error:  # the caller's thread raises it
        results.put(error)
    finally:
        results.put(None)


def _keep(opinions: Sequence[tuple[_Desk, Row, Opinion]], casting: Casting, journal: Journal) -> None:
    """Into the journal first; then they count."""
    if not opinions:
        return
    entries: list[tuple[Key, Opinion]] = [
        (key_of(row, desk.judge.name, desk.judge.digest), opinion) for desk, row, opinion in opinions
    ]
    journal.append(entries)
    for desk, row, opinion in opinions:
        casting.opinions[row.key][desk.judge.name] = opinion


def _drain(results: queue.SimpleQueue[_Result], *, wait: bool) -> list[_Result]:
    """All that has arrived, so that one sync of the journal serves it; with `wait`, one thing at least."""
    found = [results.get()] if wait else []
    while not results.empty():
        found.append(results.get())
    return found
