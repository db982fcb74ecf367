"""Guard families by name. A family compiles a vocabulary and a policy to a Plan of ids."""

from __future__ import annotations

from aegis_edge.errors import AegisError
from aegis_edge.families import aegis_edge
from aegis_edge.families.family import Family, Vocabulary
from aegis_edge.families.plan import Node, Plan

__all__ = ["DEFAULT_FAMILY", "FAMILIES", "Family", "Node", "Plan", "Vocabulary", "get_family"]

DEFAULT_FAMILY = aegis_edge.FAMILY.name
FAMILIES = {family.name: family for family in (aegis_edge.FAMILY,)}


def get_family(name: str) -> Family:
    """The family of that name; AegisError lists those there are."""
    if name not in FAMILIES:
        raise AegisError(f"unknown guard family {name!r}", hint=f"families: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
