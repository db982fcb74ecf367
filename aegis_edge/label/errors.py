"""What can go wrong in labelling. A judge that fails is none of these, but an abstention."""

from __future__ import annotations

from aegis_edge.errors import AegisError


class LabelError(AegisError):
    """A labelling run that can not go on, or must not write what it was told to."""


class JuryError(LabelError):
    """A jury's description is malformed; the message names the file, the judge and the key."""


class RowError(LabelError):
    """A row does not follow the published schema; the message names the file and the line."""


class QueueError(LabelError):
    """A queue of disagreements can not be merged; the message names the file and the line."""


class JournalError(LabelError):
    """A journal of votes is damaged, or in use by another run."""
