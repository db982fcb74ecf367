"""Export targets by name: each writes a built guard into a folder in one engine's format."""

from __future__ import annotations

import importlib
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

# In the order of the help text; the module of each is its name with underscores.
NAMES = (
    "aegis",
    "hf",
    "compressed-tensors",
    "gguf",
    "tensorrt-llm",
    "tensorrt-llm-legacy",
    "tensorrt-edge",
)


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


@dataclass(frozen=True)
class Target:
    """One engine's format.

    write    fills an empty folder
    schemes  what --quantize may say, the default first
    is_ours  whether the engine has this runtime's own steps: the Hadamard transform before `down`, second
             digits. Others get plain matrices, and the whole vocabulary, where their verdicts are read
    kept     projections that stay in bf16 whatever the scheme
    """

    write: Callable[[Build, Path], None]
    schemes: tuple[str, ...]
    is_ours: bool = False
    kept: tuple[str, ...] = ()


def get_target(name: str) -> Target:
    """The target of that name; ExportError lists those there are, or names the package it lacks."""
    if name not in NAMES:
        raise ExportError(f"unknown target {name!r}", hint=f"targets: {', '.join(NAMES)}")
    try:
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise ExportError(
            f"--target {name} needs {error.name}, which is not installed",
            hint="pip install 'aegis-edge[export]'",
        ) from error
    target: Target = module.TARGET
    return target


def scheme_for(name: str, target: Target, quantize: str | None) -> str:
    """What --quantize comes to for the target called `name`; ExportError where it can not take that."""
    if quantize is None:
        return target.schemes[0]
    if quantize not in target.schemes:
        raise ExportError(
            f"--target {name} takes no {quantize!r}", hint=f"--quantize {' or '.join(target.schemes)}"
        )
    return quantize
