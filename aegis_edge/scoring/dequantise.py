"""An artefact's weights in a plain decoder, fp32: transformers' LlamaModel, or ours where Llama lacks a
feature.

Rotations cancel and folded norms leave ones behind, so what an artefact stores is still its architecture; the
Hadamard transforms, which the runtime applies to activations, go back into the matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from aegis_edge.features import Features
from aegis_edge.scoring.featured import FeaturedDecoder, Shape
from aegis_edge.scoring.rope import inverse_frequencies

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact

_GROUP = 32  # neighbouring weights of a row that share a group scale in w4a8


def decoder_of(artifact: Artifact) -> Any:
    """The decoder without LM head; its `last_hidden_state` is what the artefact's head is applied to."""
    if Features.of(artifact.manifest["model"]).names():
        return _featured(artifact)
    return _llama(artifact)


def _featured(artifact: Artifact) -> FeaturedDecoder:
    model, names = artifact.manifest["model"], set(artifact.tensor_names())
    features = Features.of(model)
    weights = {"embed_tokens": _weight(artifact, "embed_tokens")}
    blocks = {"qkv": features.input_block, "gate_up": features.input_block}
    blocks["down"] = artifact.manifest["quantization"]["hadamard_block"]
    for name in sorted(names):
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("qkv", "o", "gate_up", "down"):
            weight = _weight(artifact, f"{layer}.{part}")
            block = blocks.get(part, 0)
            weights[f"{layer}.{part}"] = _undo_hadamard(weight, block) if block else weight
        elif part.endswith("norm") or name.endswith("qkv.bias"):
            weights[name.removesuffix(".weight")] = torch.from_numpy(artifact.tensor(name))
    keys = ("hidden", "vocab", "context", "layers", "heads", "kv_heads", "head_dim", "norm_eps")
    shape = Shape(*(model[key] for key in keys))
    return FeaturedDecoder(shape, features, weights, torch.from_numpy(inverse_frequencies(artifact)))


def _llama(artifact: Artifact) -> LlamaModel:
    model = artifact.manifest["model"]
    names = set(artifact.tensor_names())
    config = _config(artifact, names)
    inner, kv = model["heads"] * model["head_dim"], model["kv_heads"] * model["head_dim"]
    # stored matrix -> (transformers' names of its parts, their rows)
    split: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (inner, kv, kv)),
        "o": (("self_attn.o_proj",), (model["hidden"],)),
        "gate_up": (("mlp.gate_proj", "mlp.up_proj"), (model["intermediate"],) * 2),
        "down": (("mlp.down_proj",), (model["hidden"],)),
    }
    block = artifact.manifest["quantization"]["hadamard_block"]
    ones = torch.ones(model["hidden"])

    def norm(name: str) -> Tensor:
        return torch.from_numpy(artifact.tensor(name)) if name in names else ones.clone()

    state = {
        "embed_tokens.weight": _weight(artifact, "embed_tokens"),
        "norm.weight": norm("final_norm.weight"),
    }
    for layer in (f"layers.{i}" for i in range(model["layers"])):
        for source, (targets, rows) in split.items():
            weight = _weight(artifact, f"{layer}.{source}")
            if source == "down" and block:
                weight = _undo_hadamard(weight, block)
            for target, part in zip(targets, weight.split(rows), strict=True):
                state[f"{layer}.{target}.weight"] = part
        if config.attention_bias:
            bias = torch.from_numpy(artifact.tensor(f"{layer}.qkv.bias"))
            for target, part in zip(split["qkv"][0], bias.split((inner, kv, kv)), strict=True):
                state[f"{layer}.{target}.bias"] = part
            # transformers' one switch also gives `o` a bias, which no artefact has.
            state[f"{layer}.self_attn.o_proj.bias"] = torch.zeros(model["hidden"])
        state[f"{layer}.input_layernorm.weight"] = norm(f"{layer}.input_norm.weight")
        state[f"{layer}.post_attention_layernorm.weight"] = norm(f"{layer}.post_norm.weight")
    with torch.device("meta"):  # no time for random weights that are replaced at once
        decoder = LlamaModel(config)
    decoder.load_state_dict(state, assign=True)
    return decoder


def _config(artifact: Artifact, names: set[str]) -> LlamaConfig:
    model = artifact.manifest["model"]
    rope = model["rope_scaling"] or {"rope_type": "default"}
    return LlamaConfig(
        vocab_size=model["vocab"],
        hidden_size=model["hidden"],
        intermediate_size=model["intermediate"],
        num_hidden_layers=model["layers"],
        num_attention_heads=model["heads"],
        num_key_value_heads=model["kv_heads"],
        head_dim=model["head_dim"],
        max_position_embeddings=model["context"],
        rms_norm_eps=model["norm_eps"],
        rope_parameters={**rope, "rope_theta": model["rope_theta"]},
        attention_bias="layers.0.qkv.bias" in names,
        pad_token_id=None,
    )


def int8_of(artifact: Artifact, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """A matrix as the integer product reads it: int8 [out, in] and float32 scales [out]; None for one in
    bf16."""
    names = set(artifact.tensor_names())
    if f"{name}.scale" not in names:
        return None
    stored = artifact.tensor(f"{name}.weight")
    if f"{name}.group_scale" in names:
        # Two weights a byte, the even column in the low nibble; a nibble is the value plus 8.
        nibbles = np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1).astype(np.int8) - 8
        stored = nibbles * np.repeat(artifact.tensor(f"{name}.group_scale").astype(np.int8), _GROUP, axis=1)
    return stored, artifact.tensor(f"{name}.scale")


def _weight(artifact: Artifact, name: str) -> Tensor:
    """A stored matrix in fp32, [out, in]."""
    found = int8_of(artifact, name)
    if found is None:
        stored = artifact.tensor(f"{name}.weight")
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(found[0].astype(np.float32) * found[1][:, None])


def _undo_hadamard(weight: Tensor, block: int) -> Tensor:
    """W [out, in] from the stored W Hd. Hd = blocks of Sylvester's matrix / sqrt(block), its own inverse."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < block:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    return (weight.view(len(weight), -1, block) @ (hadamard / block**0.5)).view_as(weight)
