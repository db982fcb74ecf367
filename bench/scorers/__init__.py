"""The scorers that can be compared, by the name that `--scorers` takes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from aegis_edge.bench.contender import Contender
from aegis_edge.errors import InputError, ScorerError

# In the order of the report.
NAMES = ("cpu", "reference", "cuda", "openvino", "ort_genai", "llama_cpp")


def find(names: Sequence[str]) -> list[Contender]:
    """The variants that the named scorers bring; a variant's own name chooses it alone. Raises InputError."""
    found: list[Contender] = []
    for name in names:
        group = next((known for known in NAMES if name == known or name.startswith(f"{known}-")), None)
        variants = _variants(group) if group else []
        chosen = [variant for variant in variants if name in (group, variant.name)]
        if not chosen:
            raise InputError(
                f"unknown scorer {name!r}", hint=f"scorers: {', '.join(NAMES)}, or one of their variants"
            )
        found += [variant for variant in chosen if variant not in found]
    return found


def _variants(group: str) -> list[Contender]:
    try:
        module = importlib.import_module(f"{__name__}.{group}")
    except ModuleNotFoundError as error:
        raise ScorerError(
            f"{group} needs {error.name}, which is not installed", hint="pip install 'aegis-edge[bench]'"
        ) from error
    found: list[Contender] = module.contenders()
    return found
