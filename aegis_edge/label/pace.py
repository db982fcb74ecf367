"""When a judge may be asked: so many requests a minute, evenly spaced, none while it asked for a pause."""

from __future__ import annotations

import threading
import time


class Pace:
    """Shared by all threads that ask one judge."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval = 0.0 if requests_per_minute is None else 60 / requests_per_minute
        self._lock = threading.Lock()
        self._next = self._held = 0.0  # times of time.monotonic, in s

    def wait(self, stop: threading.Event) -> bool:
        """Wait for this request's turn; False where `stop` was set before it came.

        Evenly spaced, not in bursts: a burst of a minute's worth is what servers answer with 429.
        """
        while not stop.is_set():
            with self._lock:
                now = time.monotonic()
                seconds = max(self._next, self._held) - now
                if seconds <= 0:
                    self._next = now + self._interval
                    return True
            stop.wait(seconds)
        return False

    def hold(self, seconds: float) -> None:
        """No request before `seconds` from now; a longer hold stays."""
        with self._lock:
            self._held = max(self._held, time.monotonic() + seconds)
