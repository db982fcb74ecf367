"""`aegis-edge inspect`: verify an artefact and describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis_edge.artifact import Artifact
from aegis_edge.cli.output import print_rows, size


def inspect(folder: Path, *, as_json: bool) -> None:
    """Open, check every value, print. Raises ArtifactError for an artefact that is not whole."""
    artifact = Artifact.open(folder)
    artifact.check_values()
    about = artifact.describe()
    if as_json:
        print(json.dumps(about, indent=2))
    else:
        _print(about)


def _print(about: dict[str, Any]) -> None:
    model, quantization, policy = about["model"], about["quantization"], about["policy"]
    weights = ", ".join(f"{dtype.lower()} {size(count)}" for dtype, count in about["weight_bytes"].items())
    thresholds = ", ".join(f"{name} {value}" for name, value in policy["thresholds"].items())
    scaling = ", ".join(
        f"{question} {c['temperature']:.3g} / {c['bias']:+.3g}"
        for question, c in about["calibration"].items()
    )
    rows = {
        "guard": f"{about['path']}, {size(about['bytes'])}; verified: hashes, shapes, every value",
        "format": f"version {about['format_version']}",
        "family": about["family"],
        "model": f"{model['architecture']}: {model['layers']} layers, hidden {model['hidden']}, MLP "
        f"{model['intermediate']}, heads {model['heads']}/{model['kv_heads']} of {model['head_dim']}, "
        f"context {model['context']}",
        "quantisation": f"{quantization['scheme']} ({weights})",
        "head": f"{about['head']['kind']}: {', '.join(about['head']['rows'])}",
        "policy": f"{len(policy['categories'])} categories, "
        f"{'compiled' if about['policy_cached'] else 'computed at load'}; unsafe from: {thresholds}",
        "calibration": f"temperature / bias: {scaling}",
    }
    described = list(rows.items()) + sorted(_flat(about["provenance"]))
    for category in policy["categories"]:
        text = f": {category['description']}" if category.get("description") else ""
        described.append(("category", f"{category.get('code') or '-':4} {category['name']}{text}"))
    described += [("file", f"{name}, {size(count)}") for name, count in about["files"].items()]
    print_rows(described)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """("base.name", "..."): a line for each leaf of nested objects."""
    if not isinstance(value, dict):
        return [] if value is None else [(prefix, value if isinstance(value, str) else json.dumps(value))]
    return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else key)]
