"""The project's own compiled runtime, with the quantised weights and the compiled policy of the artefact."""

from __future__ import annotations

from aegis_edge.artifact import Artifact
from aegis_edge.bench.contender import Contender, Source
from aegis_edge.scoring import Scorer


def contenders() -> list[Contender]:
    return [Contender("cpu", "aegis-edge, compiled; the policy's KV mapped from the artefact", _load)]


def _load(source: Source, threads: int) -> Scorer:
    from aegis_edge.scoring.cpu import CpuScorer

    artifact = Artifact.open(source.guard)
    return CpuScorer(artifact, source.root, artifact.policy_kv(), threads)
