"""The project's own decoder on an NVIDIA GPU. A pass ends with the logits copied back: its time is whole."""

from __future__ import annotations

from aegis_edge.artifact import Artifact
from aegis_edge.bench.contender import Contender, Source
from aegis_edge.scoring import Scorer


def contenders() -> list[Contender]:
    about = "aegis-edge, Triton kernels on the GPU; the policy's KV kept there"
    needs = ("torch", "transformers", "triton")
    return [Contender("cuda", about, _load, packages=needs, modules=needs)]


def _load(source: Source, threads: int) -> Scorer:
    from aegis_edge.scoring.cuda import CudaScorer

    return CudaScorer.from_artifact(Artifact.open(source.guard))
