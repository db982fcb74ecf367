"""A tiny random guard as an artefact folder, and the same guard as the LlamaModel it must dequantise to.

Weights are drawn in their stored form and multiplied out here in another way than the package does it
(float64, the Hadamard matrix from its definition), so that the two can only agree if the format is read as it
is documented.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaModel

from aegis_edge.export.write import save_manifest, save_tensors
from aegis_edge.families import Plan
from aegis_edge.policy import Policy

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, CONTEXT = 2, 64, 4, 2, 16, 96, 512
GROUP = 32
ROWS = {
    "qkv": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    "o": (HIDDEN, HEADS * HEAD_DIM),
    "gate_up": (2 * INTERMEDIATE, HIDDEN),
    "down": (HIDDEN, INTERMEDIATE),
}
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
SIZES = {"qkv": [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], "o": [], "gate_up": [INTERMEDIATE], "down": []}


def write_tiny(
    folder: Path,
    tokenizer: Tokenizer,
    plan: Plan,
    policy: Policy,
    scheme: str = "w8a8",
    hadamard_block: int = 32,
    bias: bool = False,
    calibration: dict[str, Any] | None = None,
    seed: int = 3,
) -> LlamaModel:
    """Write the artefact (without a cached policy) and return its decoder in fp32. Head: six random rows."""
    rng = np.random.default_rng(seed)
    block = 0 if scheme == "bf16" else hadamard_block
    embed = _bf16(rng.normal(0, 1, (tokenizer.get_vocab_size(), HIDDEN)))
    tensors: dict[str, torch.Tensor] = {"embed_tokens.weight": embed}
    state: dict[str, torch.Tensor] = {"embed_tokens.weight": embed.float()}
    norms = {f"layers.{i}.{ours}": f"layers.{i}.{theirs}" for i in range(LAYERS) for ours, theirs in (
        ("input_norm", "input_layernorm"), ("post_norm", "post_attention_layernorm"))}  # fmt: skip
    for ours, theirs in {**norms, "final_norm": "norm"}.items():
        weight = torch.ones(HIDDEN)
        if scheme == "bf16":
            tensors[f"{ours}.weight"] = weight = torch.from_numpy(rng.uniform(0.5, 1.5, HIDDEN)).float()
        state[f"{theirs}.weight"] = weight
    for i in range(LAYERS):
        for name, shape in ROWS.items():
            stored, matrix = _linear(rng, shape, scheme)
            tensors |= {f"layers.{i}.{name}.{key}": value for key, value in stored.items()}
            if name == "down" and block:
                matrix = matrix @ np.kron(np.eye(INTERMEDIATE // block), _hadamard(block))
            parts = np.split(matrix, np.cumsum(SIZES[name]))
            for target, part in zip(PARTS[name], parts, strict=True):
                state[f"layers.{i}.{target}.weight"] = torch.from_numpy(part).float()
        if bias:
            values = rng.normal(0, 0.5, ROWS["qkv"][0]).astype(np.float32)
            tensors[f"layers.{i}.qkv.bias"] = torch.from_numpy(values)
            for target, part in zip(PARTS["qkv"], np.split(values, np.cumsum(SIZES["qkv"])), strict=True):
                state[f"layers.{i}.{target}.bias"] = torch.from_numpy(part)
            state[f"layers.{i}.self_attn.o_proj.bias"] = torch.zeros(HIDDEN)
    tensors["head.weight"] = torch.from_numpy(rng.normal(0, 0.2, (6, HIDDEN))).float()
    tensors["head.bias"] = torch.from_numpy(rng.normal(0, 0.1, 6)).float()
    folder.mkdir(parents=True)
    save_tensors(folder / "model.safetensors", tensors)
    config = _config(tokenizer.get_vocab_size(), bias)
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    save_manifest(folder, _manifest(config, plan, policy, scheme, block, calibration))
    decoder = LlamaModel(config)
    decoder.load_state_dict(state)
    return decoder.eval()


def _linear(
    rng: np.random.Generator, shape: tuple[int, int], scheme: str
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """(tensors as stored, the matrix in float64)."""
    n, k = shape
    if scheme == "bf16":
        weight = _bf16(rng.normal(0, 0.2, shape))
        return {"weight": weight}, weight.double().numpy()
    scale = rng.uniform(0.002, 0.004, n).astype(np.float32)
    if scheme == "w8a8":
        w8 = rng.integers(-127, 128, shape).astype(np.int8)
        stored = {"weight": torch.from_numpy(w8)}
    else:
        values = rng.integers(-7, 8, shape)
        group = rng.integers(1, 19, (n, k // GROUP)).astype(np.uint8)
        w8 = values * np.repeat(group.astype(np.int64), GROUP, axis=1)
        packed = ((values[:, 0::2] + 8) | ((values[:, 1::2] + 8) << 4)).astype(np.uint8)
        stored = {"weight": torch.from_numpy(packed), "group_scale": torch.from_numpy(group)}
    return {**stored, "scale": torch.from_numpy(scale)}, w8.astype(np.float64) * scale[:, None]


def _hadamard(n: int) -> np.ndarray:
    """Sylvester's matrix by its definition, over sqrt(n): entry (i, j) is (-1) to the number of ones in i &
    j."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / np.sqrt(n)


def _bf16(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).to(torch.bfloat16)


def _config(vocab: int, bias: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attention_bias=bias,
        pad_token_id=None,
    )


def _manifest(
    config: LlamaConfig,
    plan: Plan,
    policy: Policy,
    scheme: str,
    block: int,
    calibration: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "format_version": 1,
        "family": {"name": "aegis-edge", "plan": plan.to_json()},
        "policy": policy.to_dict(),
        "model": {
            "architecture": "llama",
            "layers": LAYERS,
            "hidden": HIDDEN,
            "heads": HEADS,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "intermediate": INTERMEDIATE,
            "vocab": config.vocab_size,
            "context": CONTEXT,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "norm_eps": 1e-5,
        },
        "quantization": {
            "scheme": scheme,
            "group": GROUP if scheme == "w4a8" else 0,
            "hadamard_block": block,
            "activation": "bf16" if scheme == "bf16" else "int8",
        },
        "head": {"kind": "trained", "rows": list(plan.rows), "token_ids": None},
        "calibration": calibration or {},
        "provenance": {},
    }
