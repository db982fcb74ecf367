"""A small random decoder as arrays, loaded into the compiled runtime; as a program: its logits.

`python native_model.py SCHEME` is what a test starts to see another instruction set, by AEGIS_EDGE_ISA.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aegis_edge.scoring import Segment

SHAPE = {
    "layers": 2,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "intermediate": 96,
    "vocab": 71,
    "context": 256,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "norm_eps": 1e-5,
}
ROWS = {"qkv": (256, 64), "o": (64, 128), "gate_up": (192, 64), "down": (64, 96)}
GROUP = 32
SCHEMES = ("w8a8", "w4a8", "bf16")


def bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers: bf16 by truncation, as uint16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


class RandomWeights:
    """What `CpuScorer` needs of an artefact."""

    def __init__(self, scheme: str, seed: int = 5, **shape: Any) -> None:
        rng = np.random.default_rng(seed)
        model = {**SHAPE, **shape}
        block = 0 if scheme == "bf16" else 32
        self.manifest: Mapping[str, Any] = {
            "model": model,
            "quantization": {"scheme": scheme, "hadamard_block": block},
            "head": {"rows": ["safe", "unsafe", "other"]},
        }
        self.tensors: dict[str, np.ndarray] = {
            "embed_tokens.weight": bf16(rng.normal(0, 1, (model["vocab"], model["hidden"]))),
            "head.weight": rng.normal(0, 0.3, (3, model["hidden"])).astype(np.float32),
            "head.bias": rng.normal(0, 0.3, 3).astype(np.float32),
        }
        for layer in range(model["layers"]):
            for name, (n, k) in ROWS.items():
                for key, value in self._linear(rng, scheme, n, k).items():
                    self.tensors[f"layers.{layer}.{name}.{key}"] = value
            bias = rng.normal(0, 0.2, ROWS["qkv"][0]).astype(np.float32)
            self.tensors[f"layers.{layer}.qkv.bias"] = bias
            if scheme == "bf16":
                norm = rng.uniform(0.5, 1.5, model["hidden"]).astype(np.float32)
                self.tensors[f"layers.{layer}.input_norm.weight"] = norm

    @staticmethod
    def _linear(rng: np.random.Generator, scheme: str, n: int, k: int) -> dict[str, np.ndarray]:
        if scheme == "bf16":
            return {"weight": bf16(rng.normal(0, 1.5 / np.sqrt(k), (n, k)))}
        scale = (rng.uniform(0.01, 0.02, n) * 1.5 / np.sqrt(k)).astype(np.float32)
        if scheme == "w8a8":
            return {"weight": rng.integers(-127, 128, (n, k)).astype(np.int8), "scale": scale}
        nibbles = rng.integers(1, 16, (n, k)).astype(np.uint8)
        return {
            "weight": nibbles[:, 0::2] | (nibbles[:, 1::2] << 4),
            "group_scale": rng.integers(9, 19, (n, k // GROUP)).astype(np.uint8),
            "scale": scale,
        }

    def tensor_names(self) -> Sequence[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> np.ndarray:
        return self.tensors[name]

    map_tensor = tensor


def ids(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SHAPE["vocab"], n).astype(np.int32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def segments() -> list[Segment]:
    """Two prompts, the second with a verdict and a response beneath it."""
    return [
        Segment(ids(17, 1), 0, (16,)),
        Segment(ids(5, 2), 0, (0, 4)),
        Segment(ids(1, 3), 2, (0,)),
        Segment(ids(30, 4), 3, (29,)),
    ]


def scores(scheme: str, threads: int = 1) -> np.ndarray:
    """Logits, float32 [5, 3], of `segments` under a root of 37 tokens."""
    from aegis_edge.scoring.cpu import CpuScorer

    return CpuScorer(RandomWeights(scheme), ids(37, 9), threads=threads).tree().extend(segments())


if __name__ == "__main__":
    from aegis_edge import _native

    print(json.dumps({"isa": _native.isa(), "logits": scores(sys.argv[1]).tolist()}))
