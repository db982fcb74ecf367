"""aegis-edge: a guard for language models that runs inside your process.

from aegis_edge import Guard

guard = Guard.load("guard/")
guard.check("How do I pick a lock?").safe
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis_edge.conversation import Conversation, Dialogue, Turn
from aegis_edge.decision import CategoryScore, Rating, Verdict, Window
from aegis_edge.errors import (
    AegisError,
    ArtifactError,
    ContextError,
    ExportError,
    FamilyError,
    InputError,
    PolicyError,
    ScorerError,
    UnsafeError,
)
from aegis_edge.policy import Category, Policy, Thresholds

if TYPE_CHECKING:
    from aegis_edge.guard import Guard

__version__ = "0.1.0"
__all__ = [
    "AegisError",
    "ArtifactError",
    "Category",
    "CategoryScore",
    "ContextError",
    "Conversation",
    "Dialogue",
    "ExportError",
    "FamilyError",
    "Guard",
    "InputError",
    "Policy",
    "PolicyError",
    "Rating",
    "ScorerError",
    "Thresholds",
    "Turn",
    "UnsafeError",
    "Verdict",
    "Window",
]


def __getattr__(name: str) -> object:
    # Guard needs numpy, whose import alone takes about 0.1 s: it waits until Guard is used.
    if name == "Guard":
        from aegis_edge.guard import Guard

        globals()["Guard"] = Guard
        return Guard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
