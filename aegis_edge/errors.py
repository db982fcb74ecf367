"""The errors a user can meet. Each says what is wrong; `hint` says what can be done, where something can.

A check has three outcomes: safe, unsafe, or one of these. An error is never taken for safe.
"""

from __future__ import annotations


class AegisError(Exception):
    """Base of every error raised on purpose by this package. `hint` is one line of advice, or None."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles its positional arguments only: without this the hint is lost between processes.
        return _rebuild, (type(self), str(self), self.hint)


class ArtifactError(AegisError):
    """An artefact folder is damaged, altered, incomplete or of an unknown version."""


class PolicyError(AegisError):
    """A policy is malformed; the message names the key, and the line where it came from TOML."""


class FamilyError(AegisError):
    """A guard family that is malformed, or that a checkpoint does not fit; the message names the key, and the
    line where it came from a file."""


class ContextError(AegisError):
    """A conversation does not fit the guard's context; the message states tokens and limit."""


class InputError(AegisError):
    """What was handed in for checking is not text."""


class UnsafeError(AegisError):
    """A guarded stream was stopped: no failure, but a finding. `verdict` is the Verdict that did it."""

    def __init__(self, message: str, *, hint: str | None = None, verdict: object = None) -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_unsafe, (str(self), self.verdict, self.hint)


class ExportError(AegisError):
    """A base model, adapter or setting that the export can not take."""


class ScorerError(AegisError):
    """A scorer failed: unusable logits, a missing engine, a misuse of the token tree."""


def _rebuild(kind: type[AegisError], message: str, hint: str | None) -> AegisError:
    return kind(message, hint=hint)


def _rebuild_unsafe(message: str, verdict: object, hint: str | None) -> UnsafeError:
    return UnsafeError(message, verdict=verdict, hint=hint)
