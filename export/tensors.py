"""The tensors of model.safetensors, by name, from a quantised trunk. docs/artifact.md lists names, types and
shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from aegis_edge.export.quantise import Bf16, Int4, Int8
from aegis_edge.export.trunk import PROJECTIONS, Trunk

NORMS = ("input_norm", "post_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_out_norm")


def tensors_of(trunk: Trunk) -> dict[str, Tensor]:
    """Name -> tensor, in the order of the forward pass."""
    tensors: dict[str, Tensor] = {"embed_tokens.weight": trunk.embed.to(torch.bfloat16)}
    if trunk.features.rope_of:
        tensors["rope.inverse_frequency"] = torch.stack([frequency for frequency, _ in trunk.ropes])
    for i, layer in enumerate(trunk.layers):
        for norm in NORMS:
            _add_norm(tensors, f"layers.{i}.{norm}", getattr(layer, norm))
        for name in PROJECTIONS:
            _add_projection(tensors, f"layers.{i}.{name}", getattr(layer, name))
    _add_norm(tensors, "final_norm", trunk.final_norm)
    tensors["head.weight"] = trunk.head_weight.float()
    tensors["head.bias"] = trunk.head_bias.float()
    if trunk.unembed is not None:
        tensors["unembed.weight"] = trunk.unembed.float().contiguous()
    if trunk.lm_head is not None:
        tensors["lm_head.weight"] = trunk.lm_head.to(torch.bfloat16)
    return tensors


def _add_norm(tensors: dict[str, Tensor], name: str, weight: Tensor | None) -> None:
    if weight is not None:
        tensors[f"{name}.weight"] = weight.float()


def _add_projection(tensors: dict[str, Tensor], name: str, projection: object) -> None:
    match projection:
        case Int8():
            tensors |= {f"{name}.weight": projection.weight, f"{name}.scale": projection.scale}
        case Int4():
            tensors[f"{name}.weight"] = projection.packed()
            tensors |= {f"{name}.group_scale": projection.group_scale, f"{name}.scale": projection.scale}
        case Bf16():
            tensors[f"{name}.weight"] = projection.weight
        case _:
            raise TypeError(f"{name}: {type(projection).__name__} has no format in the artefact")
    if projection.bias is not None:
        tensors[f"{name}.bias"] = projection.bias.float()
