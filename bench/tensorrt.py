"""TensorRT-LLM's checkpoints read without it: transformers' model of the same decoder, from what the files
say alone.

Matrices in FP8 multiply as ModelOpt's format defines it (export/foreign.py): weights by their scale, inputs
rounded to E4M3 by theirs. In fp32, so what it gives is the checkpoint's and not the engine's arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from aegis_edge.errors import ScorerError
from aegis_edge.export.foreign import Fp8

# TensorRT-LLM's old names of a layer's parts -> transformers', as in tensorrt_llm/models/llama/convert.py.
_PARTS = {
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
    "attention.dense": "self_attn.o_proj",
    "mlp.fc": "mlp.gate_proj",
    "mlp.gate": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
_TOP = {"vocab_embedding": "embed_tokens", "ln_f": "norm"}
_SCALES = {"weights_scaling_factor": "weight_scale", "activation_scaling_factor": "input_scale"}


def model_of(folder: Path) -> Any:
    """The model, fp32. Raises ScorerError for a form or tensors that are not those of the format."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if (folder / "rank0.safetensors").is_file():
        about = json.loads((folder / "config.json").read_text("utf-8"))
        algorithm, config = about["quantization"]["quant_algo"], _config(about)
        tensors = _renamed(load_file(folder / "rank0.safetensors"), about)
    else:
        algorithm = json.loads((folder / "hf_quant_config.json").read_text("utf-8"))["quantization"][
            "quant_algo"
        ]
        tensors, config = load_file(folder / "model.safetensors"), AutoConfig.from_pretrained(folder)
    if algorithm not in (None, "FP8"):
        raise ScorerError(f"{folder}: the quantisation {algorithm!r} is not read here")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("_scale")}
    if (algorithm is None) != (not scales):
        raise ScorerError(f"{folder}: {len(scales)} scales for the quantisation {algorithm!r}")
    if model.config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    for name in {scale.rpartition(".")[0] for scale in scales}:
        module = model.get_submodule(name)
        bias = tensors.get(f"{name}.bias")
        product = Fp8(
            tensors[f"{name}.weight"],
            scales[f"{name}.weight_scale"].float(),
            scales[f"{name}.input_scale"].float(),
            None if bias is None else bias.float(),
        )
        module.forward = lambda x, product=product: product(x, x)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ScorerError(f"{folder}: its tensors are not those of its configuration: {error}") from error
    return model


def _config(about: Mapping[str, Any]) -> Any:
    """The older form's config.json as transformers' configuration."""
    from transformers import LlamaConfig, Qwen2Config

    kind = {"LlamaForCausalLM": LlamaConfig, "Qwen2ForCausalLM": Qwen2Config}[about["architecture"]]
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    rope = {"rope_type": "default", **(about["rotary_scaling"] or {}), "rope_theta": about["rotary_base"]}
    return kind(
        **{name: about[name] for name in (*same, "intermediate_size", "max_position_embeddings")},
        head_dim=about["head_size"],
        rms_norm_eps=about["norm_epsilon"],
        rope_parameters=rope,
        tie_word_embeddings=about["tie_word_embeddings"],
    )


def _renamed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The older form's tensors under transformers' names; queries, keys and values apart."""
    heads = about["num_attention_heads"], *[about["num_key_value_heads"]] * 2
    rows = [count * about["head_size"] for count in heads]
    found = {"lm_head.weight": tensors["lm_head.weight"]}
    for name, tensor in tensors.items():
        path, _, key = name.removeprefix("transformer.").rpartition(".")
        key = _SCALES.get(key, key)
        if path in _TOP:
            found[f"model.{_TOP[path]}.{key}"] = tensor
        elif path.endswith("attention.qkv"):
            layer = path.removesuffix("attention.qkv")
            pieces = [tensor] * 3 if key.endswith("_scale") else tensor.split(rows)
            for part, piece in zip("qkv", pieces, strict=True):
                found[f"model.{layer}self_attn.{part}_proj.{key}"] = piece
        elif path.startswith("layers."):
            _, number, part = path.split(".", 2)
            found[f"model.layers.{number}.{_PARTS[part]}.{key}"] = tensor
    return found
