"""Guard families by name. A family compiles a vocabulary and a policy to a Plan of ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aegis_edge.errors import AegisError, ArtifactError, FamilyError
from aegis_edge.families import aegis_edge
from aegis_edge.families.family import Family, Vocabulary
from aegis_edge.families.plan import Node, Plan

if TYPE_CHECKING:
    from aegis_edge.families.recipe import Recipe

__all__ = [
    "DEFAULT_FAMILY",
    "FAMILIES",
    "Family",
    "Node",
    "Plan",
    "Vocabulary",
    "family_of",
    "find_recipe",
    "get_family",
]

DEFAULT_FAMILY = aegis_edge.FAMILY.name
FAMILIES = {family.name: family for family in (aegis_edge.FAMILY,)}


def get_family(name: str) -> Family:
    """The family of that name whose code is all it needs; AegisError lists those there are."""
    if name not in FAMILIES:
        raise AegisError(f"unknown guard family {name!r}", hint=f"families: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def find_recipe(name: str) -> Recipe | None:
    """The recipe that a name or a .toml file means; None for the families of FAMILIES. AegisError lists what
    there is."""
    if name in FAMILIES:
        return None
    from aegis_edge.families.recipe import BUILT_IN, Recipe  # here: checks read no recipes

    if name.endswith(".toml"):
        return Recipe.from_file(name)
    built_in = {file.stem: file for file in BUILT_IN.glob("*.toml")}
    if name not in built_in:
        known = ", ".join(sorted({*FAMILIES, *built_in}))
        raise AegisError(f"unknown guard family {name!r}", hint=f"families: {known}, or a .toml file")
    return Recipe.from_file(built_in[name])


def family_of(section: Mapping[str, Any]) -> Family:
    """The family of a manifest's section. Raises AegisError, ArtifactError."""
    if "spoken" not in section:
        return get_family(section["name"])
    from aegis_edge.families.spoken import Spoken

    try:
        return Spoken.from_json(section["spoken"]).family()
    except FamilyError as error:
        raise ArtifactError(f"family.spoken: {error}") from error
