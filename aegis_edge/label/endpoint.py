"""A judge behind an OpenAI-compatible endpoint: ask, wait, ask again, give up.

Asked again: when no answer came, and on the statuses below. The n-th wait is drawn evenly from half of
backoff * 2^n s to all of it (at most 60 s), so that threads that failed together do not come back together. A
Retry-After of the server's is obeyed by all of the judge's threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aegis_edge.label.answer import from_completion
from aegis_edge.label.errors import JuryError
from aegis_edge.label.jury import EndpointSettings
from aegis_edge.label.pace import Pace
from aegis_edge.label.question import INSTRUCTIONS, messages
from aegis_edge.label.rows import Row
from aegis_edge.label.transport import Reply, TransportError, post
from aegis_edge.label.votes import Abstention, Opinion

# Request timeout, too early, too many requests, and a server in trouble. Any other status stays what it is.
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
MAX_BACKOFF = 60.0  # s
STOPPED = Abstention("not asked", "the run was stopped")


class EndpointJudge:
    """Safe to use from several threads."""

    def __init__(self, settings: EndpointSettings, environment: Mapping[str, str] = os.environ) -> None:
        """Raises JuryError where the key's variable is unset, or holds what no header can."""
        self.name, self.concurrency = settings.name, settings.concurrency
        self.give_up_after = settings.give_up_after
        self._settings = settings
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", "User-Agent": "aegis-edge"}
        if settings.key_env is not None:
            self._headers["Authorization"] = f"Bearer {_key(settings, environment)}"
        self._pace = Pace(settings.requests_per_minute)
        # What its votes depend on, and nothing else: a longer timeout must not make them be cast again.
        voice = [settings.base_url, settings.model, dict(settings.parameters), INSTRUCTIONS]
        self.digest = hashlib.sha256(json.dumps(voice, sort_keys=True).encode()).hexdigest()

    def judge(self, row: Row, stop: threading.Event) -> Opinion:
        """This judge's opinion of a row; STOPPED where `stop` was set before there was one. Never raises for
        what a server does."""
        settings = self._settings
        body = json.dumps(
            {**settings.parameters, "model": settings.model, "messages": messages(row)}, ensure_ascii=False
        ).encode()
        attempt = 0
        while self._pace.wait(stop):
            asked_wait = None
            try:
                reply = post(self._url, self._headers, body, settings.timeout)
                if reply.status == 200:
                    return from_completion(reply.body)
                failure = Abstention("http", f"HTTP status {reply.status}")
                if reply.status not in AGAIN:
                    return failure
                asked_wait = retry_after(reply)
            except TransportError as error:
                failure = Abstention(error.cause, str(error))
            if asked_wait is not None:
                if asked_wait > settings.max_wait:
                    reason = f"{failure.reason}, to be asked again in {asked_wait:.0f} s"
                    return Abstention("http", f"{reason}, which is more than `max_wait`")
                self._pace.hold(asked_wait)
            if attempt == settings.retries:
                tries = f" ({attempt + 1} tries)" if attempt else ""
                return Abstention(failure.cause, failure.reason + tries)
            stop.wait(backoff(settings.backoff, attempt))
            attempt += 1
        return STOPPED


def backoff(first: float, attempt: int) -> float:
    """Seconds before the next try; attempts count from 0."""
    return min(MAX_BACKOFF, first * 2**attempt) * random.uniform(0.5, 1)


def retry_after(reply: Reply, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After asks for, as a number or as a date; None without one that can be read."""
    text = (reply.headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _key(settings: EndpointSettings, environment: Mapping[str, str]) -> str:
    key = environment.get(settings.key_env or "", "").strip()
    if not key:
        raise JuryError(
            f"judge {settings.name!r}: the variable {settings.key_env} is not set",
            hint=f"export {settings.key_env}=..., or leave `key_env` out where no key is needed",
        )
    if not (key.isascii() and key.isprintable()):
        raise JuryError(
            f"judge {settings.name!r}: the key in {settings.key_env} holds control or other characters"
        )
    return key
