"""A local guard artefact as a judge: it votes what it says of the response."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_edge.errors import AegisError
from aegis_edge.label.answer import vote
from aegis_edge.label.errors import JuryError
from aegis_edge.label.jury import GuardSettings
from aegis_edge.label.rows import Row
from aegis_edge.label.votes import Abstention, Opinion

if TYPE_CHECKING:
    from aegis_edge.guard import Guard


class GuardJudge:
    """One thread: a guard uses several by itself."""

    concurrency = 1
    give_up_after = 0  # it can always be reached

    def __init__(self, name: str, guard: Guard, digest: str) -> None:
        """`digest` tells this guard from every other: its votes are kept under it."""
        self.name, self.digest = name, digest
        self._guard = guard

    @classmethod
    def load(cls, settings: GuardSettings) -> GuardJudge:
        """Raises JuryError for a guard that can not be loaded."""
        from aegis_edge.guard import Guard, find_guard

        try:
            folder = find_guard() if settings.path is None else settings.path
            guard = Guard.load(folder, settings.threads, refuse_long=True)
        except AegisError as error:
            raise JuryError(f"judge {settings.name!r}: {error}", hint=error.hint) from error
        # The manifest holds the hash of every other file.
        digest = hashlib.sha256((Path(folder) / "aegis.json").read_bytes()).hexdigest()
        return cls(settings.name, guard, digest)

    def judge(self, row: Row, stop: threading.Event) -> Opinion:
        """The guard's rating of the response. A text that it can not check is an abstention."""
        try:
            verdict = self._guard.check(row.prompt, row.response)
        except AegisError as error:
            return Abstention("guard", str(error))
        if verdict.response is None:
            return Abstention("guard", "the guard did not judge the response")
        if verdict.response.safe:  # its categories are the prompt's then
            return vote("safe", [])
        return vote("unsafe", [category.name for category in verdict.categories])
