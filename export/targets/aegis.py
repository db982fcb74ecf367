"""The project's own artefact: a Hugging Face folder with a manifest. docs/artifact.md describes it,
aegis_edge/artifact.py reads it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aegis_edge.artifact import POLICY, Artifact
from aegis_edge.export.card import model_card
from aegis_edge.export.quantise import GROUP
from aegis_edge.export.targets import Build, Target
from aegis_edge.export.tensors import tensors_of
from aegis_edge.export.write import save_manifest, save_policy, save_tensors
from aegis_edge.manifest import FORMAT_VERSION
from aegis_edge.scoring.cpu import CpuScorer


def write(build: Build, folder: Path) -> None:
    """Fill `folder` with the artefact, and read all of it back once."""
    config = build.parent.model.config.to_dict()
    for stale in ("quantization_config", "_name_or_path"):
        config.pop(stale, None)
    (folder / "config.json").write_text(
        json.dumps(config, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )
    (folder / "tokenizer.json").write_text(build.parent.tokenizer, encoding="utf-8")
    save_tensors(folder / "model.safetensors", tensors_of(build.trunk))
    manifest = _manifest(build)
    # The runtime itself computes the policy's keys and values, from the weights as they stand in the folder:
    # so a cached policy and one computed afresh give the same bits.
    save_manifest(folder, manifest)
    scorer = CpuScorer(Artifact.open(folder, verify=False), np.array(build.plan.root, np.int32))
    save_policy(folder / POLICY, *scorer.root_kv())
    manifest["policy_kv"] = {"tokens": len(build.plan.root), "isa": scorer.isa}
    size = sum(file.stat().st_size for file in folder.iterdir())
    (folder / "README.md").write_text(model_card(build, size), encoding="utf-8")
    save_manifest(folder, manifest)
    Artifact.open(folder).check_values()


def _manifest(build: Build) -> dict[str, Any]:
    head, features = build.parent.head, build.trunk.features
    model: dict[str, Any] = {"architecture": "llama", **asdict(build.trunk.dims)}
    if features.names():
        model |= {"architecture": "decoder", "features": features.to_json()}
    return {
        "format_version": FORMAT_VERSION,
        "family": {
            "name": build.family.name,
            "plan": build.plan.to_json(),
            **({} if build.family.spoken is None else {"spoken": build.family.spoken.to_json()}),
        },
        "policy": build.policy.to_dict(),
        "policy_kv": None,
        "model": model,
        "quantization": {
            "scheme": build.scheme,
            "group": GROUP if build.scheme == "w4a8" else 0,
            "hadamard_block": build.trunk.hadamard_block,
            "activation": "bf16" if build.scheme == "bf16" else "int8",
        },
        "head": {
            "kind": head.kind,
            "rows": list(head.rows),
            "token_ids": None if head.token_ids is None else list(head.token_ids),
        },
        "calibration": build.parent.calibration,
        "provenance": build.provenance,
    }


TARGET = Target(write, schemes=("w8a8", "w4a8", "bf16"), is_ours=True)
