"""Rotary frequencies of an artefact: its own tables, or those of the manifest's theta and scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from aegis_edge.errors import ArtifactError


class Weights(Protocol):
    """The part of an artefact that is asked."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...
    def tensor(self, name: str) -> np.ndarray: ...


def inverse_frequencies(weights: Weights) -> np.ndarray:
    """float32 [tables, head_dim / 2]: the tables that `features.rope_of` numbers, else the one of every
    layer.
    """
    model = weights.manifest["model"]
    if (model.get("features") or {}).get("rope_of"):
        return weights.tensor("rope.inverse_frequency")
    return frequencies(model)[None]


def frequencies(model: Mapping[str, Any]) -> np.ndarray:
    """Rotary frequencies, float32 [head_dim / 2], of `rope_theta` and `rope_scaling` (linear and llama3).

    llama3: frequencies whose wavelength 2 pi / f exceeds original / low_freq_factor are divided by `factor`,
    those below original / high_freq_factor stay, and between them the two are blended (Llama 3.1,
    transformers' `rope_type: llama3`).
    """
    dims = np.arange(0, model["head_dim"], 2, dtype=np.float32) / np.float32(model["head_dim"])
    frequency = (1.0 / np.power(np.float32(model["rope_theta"]), dims)).astype(np.float32)
    scaling = model.get("rope_scaling")
    if not scaling:
        return frequency
    factor = np.float32(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequency / factor
    if scaling["rope_type"] != "llama3":
        raise ArtifactError(f"model.rope_scaling {scaling['rope_type']!r} is not one the runtime has")
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((original * frequency / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * frequency / factor + smooth * frequency).astype(np.float32)
