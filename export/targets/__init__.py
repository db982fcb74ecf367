"""Export targets by name: each writes a built guard into a folder in one engine's format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_edge.errors import ExportError
from aegis_edge.export.merge import Parent
from aegis_edge.export.simulate import Fidelity
from aegis_edge.export.trunk import Trunk
from aegis_edge.families import Family, Plan
from aegis_edge.policy import Policy


@dataclass(frozen=True)
class Build:
    """A quantised guard ready to be written. errors: relative error of each projection; provenance: the
    parent's and the export's own."""

    parent: Parent
    trunk: Trunk
    family: Family
    plan: Plan
    policy: Policy
    scheme: str
    fidelity: Fidelity
    errors: dict[str, float]
    provenance: dict[str, Any]


Target = Callable[[Build, Path], None]


def get_target(name: str) -> Target:
    """The writer of that name; ExportError lists those there are."""
    if name == "aegis":
        from aegis_edge.export.targets.aegis import write

        return write
    raise ExportError(f"unknown target {name!r}", hint="targets: aegis")
