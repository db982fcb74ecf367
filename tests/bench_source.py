"""A tiny guard and its parent on disk: what a peer of the benchmark is prepared from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_artifact import write_tiny
from tokenizers import Tokenizer

from aegis_edge.artifact import Artifact
from aegis_edge.bench import parent
from aegis_edge.bench.contender import Source
from aegis_edge.families import Plan
from aegis_edge.policy import Policy


def write_source(top: Path, tokenizer: Tokenizer, plan: Plan, policy: Policy) -> Source:
    decoder = write_tiny(top / "guard", tokenizer, plan, policy)
    (top / "parent").mkdir()
    parent.save(decoder, top / "parent")
    artifact = Artifact.open(top / "guard")
    head = {part: artifact.tensor(f"head.{part}") for part in ("weight", "bias")}
    np.savez(top / "parent" / "head.npz", **head)
    return Source(top / "guard", top / "parent", top)
