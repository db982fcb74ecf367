"""The Hugging Face folder that hf, compressed-tensors and tensorrt-llm have in common, and the head
beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis_edge.export.architecture import rope_parameters
from aegis_edge.export.foreign import Fp8
from aegis_edge.export.quantise import Bf16, Int8
from aegis_edge.export.targets import Build
from aegis_edge.export.targets.vocabulary import Vocabulary
from aegis_edge.export.trunk import Dims, Projection
from aegis_edge.export.write import save_tensors
from aegis_edge.exported import HEAD_FILE, HEAD_FORMAT

# Ours -> transformers' names of its parts.
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def save_checkpoint(
    build: Build, vocabulary: Vocabulary, folder: Path, quantization: dict[str, Any] | None = None
) -> None:
    """config.json, model.safetensors and tokenizer files; quantization: config.json's quantization_config."""
    config = config_of(build, vocabulary)
    if quantization is not None:
        config["quantization_config"] = quantization
    write_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", dict(tensors_of(build, vocabulary)))
    save_tokenizer(build, vocabulary, folder)


def config_of(build: Build, vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of config.json, readable by transformers 4 and 5."""
    model, trunk = build.parent.model, build.trunk
    config: dict[str, Any] = json.loads(json.dumps(model.config.to_dict(), default=str))
    for stale in ("quantization_config", "_name_or_path"):
        config.pop(stale, None)
    theta, scaling = rope_parameters(model.config)
    return config | {
        "architectures": [type(model).__name__],
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # transformers 4, and engines built on it
        "rope_theta": theta,
        "rope_scaling": scaling,
        "head_dim": trunk.dims.head_dim,
        "tie_word_embeddings": vocabulary.lm_head is None,
        "vocab_size": len(vocabulary.embed),
    }


def tensors_of(build: Build, vocabulary: Vocabulary) -> Iterator[tuple[str, Tensor]]:
    """transformers' name and tensor of everything, in the order of the forward pass."""
    trunk = build.trunk
    ones = torch.ones(trunk.dims.hidden)
    yield "model.embed_tokens.weight", vocabulary.embed.bfloat16()
    for i, layer in enumerate(trunk.layers):
        name = f"model.layers.{i}"
        for norm, ours in (
            ("input_layernorm", layer.input_norm),
            ("post_attention_layernorm", layer.post_norm),
        ):
            yield f"{name}.{norm}.weight", (ones if ours is None else ours).bfloat16()
        for part, targets in PARTS.items():
            rows = rows_of(trunk.dims, part)
            for target, piece in zip(targets, split(getattr(layer, part), rows), strict=True):
                for key, tensor in piece.items():
                    yield f"{name}.{target}.{key}", tensor
    yield "model.norm.weight", (ones if trunk.final_norm is None else trunk.final_norm).bfloat16()
    if vocabulary.lm_head is not None:
        yield "lm_head.weight", vocabulary.lm_head.bfloat16()


def rows_of(dims: Dims, part: str) -> list[int]:
    """Output rows of each of transformers' parts of one of our matrices."""
    kv = dims.kv_heads * dims.head_dim
    return {
        "qkv": [dims.heads * dims.head_dim, kv, kv],
        "gate_up": [dims.intermediate] * 2,
    }.get(part, [dims.hidden])


def split(projection: Projection, rows: list[int]) -> Iterator[dict[str, Tensor]]:
    """A stacked projection's tensors in pieces of so many rows: {"weight": ..., scales, "bias" where it
    has one}.
    """
    match projection:
        case Bf16():
            whole: dict[str, Tensor] = {}
        case Int8():
            whole = {"weight_scale": projection.scale[:, None]}
        case Fp8():
            whole = {}
        case _:
            raise TypeError(f"{type(projection).__name__} has no form in a Hugging Face checkpoint")
    whole["weight"] = projection.weight
    if projection.bias is not None:
        whole["bias"] = projection.bias.bfloat16()
    pieces = {key: tensor.split(rows) for key, tensor in whole.items()}
    for i in range(len(rows)):
        piece = {key: tensors[i] for key, tensors in pieces.items()}
        if isinstance(
            projection, Fp8
        ):  # one scale a stacked matrix: engines that stack it again keep it as it is
            piece |= {"weight_scale": projection.scale.clone(), "input_scale": projection.input_scale.clone()}
        yield piece


def save_tokenizer(build: Build, vocabulary: Vocabulary, folder: Path) -> None:
    """tokenizer.json with the label tokens, and the least of a tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(vocabulary.tokenizer, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": build.trunk.dims.context,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def save_head(build: Build, vocabulary: Vocabulary, folder: Path) -> None:
    """aegis_head.json (plan, policy, calibration, label tokens; what `exported_guard` reads) and
    aegis_head.safetensors: the label rows fp32 `weight` [R, H] and `bias` [R], for hidden states after the
    final norm."""
    trunk, head = build.trunk, build.parent.head
    save_tensors(
        folder / "aegis_head.safetensors",
        {"weight": trunk.head_weight.float().clone(), "bias": trunk.head_bias.float()},
    )
    description = {
        "format": HEAD_FORMAT,
        "family": build.family.name,
        "spoken": None if build.family.spoken is None else build.family.spoken.to_json(),
        "plan": build.plan.to_json(),
        "policy": build.policy.to_dict(),
        "calibration": build.parent.calibration,
        "head": {
            "rows": list(head.rows),
            "tokens": list(vocabulary.tokens),
            "bias": trunk.head_bias.tolist(),
        },
        "model": {"context": trunk.dims.context, "vocab": len(vocabulary.embed), "hidden": trunk.dims.hidden},
        "quantization": build.scheme,
        "provenance": build.provenance,
    }
    write_json(folder / HEAD_FILE, description)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Readable, in a fixed order, UTF-8."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")
