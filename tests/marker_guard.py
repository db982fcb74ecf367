"""A guard in the compiled runtime that finds a conversation unsafe where it holds a marker, and else safe.

Its one layer attends to all tokens alike (queries and keys are 0) and copies one dimension of them, which
only the marker's embedding has; the head reads that dimension at a turn's closing marker.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from native_model import RandomWeights, bf16

from aegis_edge.decision import Calibration
from aegis_edge.encoding import ContentEncoder
from aegis_edge.families import Plan
from aegis_edge.guard import Guard
from aegis_edge.policy import Policy
from aegis_edge.scoring.cpu import CpuScorer
from aegis_edge.windows import Limits

MARKER = "\x05"  # one byte, one token, and in no text that people write
HIDDEN, HEADS, HEAD_DIM, PLACE = 64, 2, 32, 7


class MarkerWeights:
    """What `CpuScorer` needs of an artefact, in bf16."""

    def __init__(self, vocab: int, marker: int, context: int) -> None:
        shape = {"layers": 1, "hidden": HIDDEN, "heads": HEADS, "kv_heads": 1, "head_dim": HEAD_DIM}
        self.manifest: dict[str, Any] = {
            "model": RandomWeights("bf16").manifest["model"] | shape | {"vocab": vocab, "context": context},
            "quantization": {"scheme": "bf16", "hadamard_block": 0},
            "head": {"rows": ["safe", "unsafe"] * 3},
        }
        embedding = np.random.default_rng(1).normal(0, 1, (vocab, HIDDEN))
        embedding[:, PLACE] = 0
        embedding[marker] = 0
        embedding[marker, PLACE] = 1
        qkv = np.zeros(((HEADS + 2) * HEAD_DIM, HIDDEN))
        qkv[(HEADS + 1) * HEAD_DIM, PLACE] = 1
        o = np.zeros((HIDDEN, HEADS * HEAD_DIM))
        o[PLACE, 0] = 100
        head = np.zeros((6, HIDDEN))
        head[1::2, PLACE] = 100
        self.tensors: dict[str, np.ndarray] = {
            "embed_tokens.weight": bf16(embedding),
            "layers.0.qkv.weight": bf16(qkv),
            "layers.0.o.weight": bf16(o),
            "layers.0.gate_up.weight": bf16(np.zeros((192, HIDDEN))),
            "layers.0.down.weight": bf16(np.zeros((HIDDEN, 96))),
            "head.weight": head.astype(np.float32),
            "head.bias": np.zeros(6, np.float32),
        }

    def tensor_names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> np.ndarray:
        return self.tensors[name]

    map_tensor = tensor


class RandomGuardWeights(RandomWeights):
    """Random weights of a vocabulary and context, with the default family's six rows."""

    def __init__(self, scheme: str, vocab: int, context: int) -> None:
        super().__init__(scheme, vocab=vocab, context=context)
        rng = np.random.default_rng(2)
        self.manifest = {**self.manifest, "head": {"rows": ["safe", "unsafe"] * 3}}
        self.tensors["head.weight"] = rng.normal(0, 0.3, (6, HIDDEN)).astype(np.float32)
        self.tensors["head.bias"] = rng.normal(0, 0.3, 6).astype(np.float32)


def guard_of(
    weights: Any, encoder: ContentEncoder, plan: Plan, policy: Policy, limits: Limits | None = None
) -> Guard:
    """A guard over weights of `plan.rows`'s number of rows; one thread."""
    weights.manifest = {**weights.manifest, "head": {"rows": list(plan.rows)}}
    scorer = CpuScorer(weights, np.array(plan.root, np.int32), threads=1)
    return Guard(scorer, encoder, plan, policy, limits=limits)


def marker_guard(
    encoder: ContentEncoder, plan: Plan, policy: Policy, limits: Limits, context: int, marker: str = MARKER
) -> Guard:
    """Unsafe where the marker stands in the policy's reach, P(unsafe) > .99; else P(unsafe) < .01."""
    vocab = max(encoder.control_ids) + 1
    weights = MarkerWeights(vocab, encoder.ids(marker)[-1], context)
    guard = guard_of(weights, encoder, plan, replace(policy, decided_by="verdict"), limits)
    scaled = {
        name: Calibration(0.01, -10.0) for name in ("prompt", "response", "category", "custom_category")
    }
    return Guard(guard._scorer, encoder, plan, guard.policy, scaled, limits=limits)
