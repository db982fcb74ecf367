"""The adapter folder: PEFT LoRA in bf16, label rows in fp32, calibration. Written atomically; read back
to resume or test.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from aegis_edge.families.aegis_edge import ROWS
from aegis_edge.train.model import PROJECTIONS, LeanLlama

FORMAT = 1
_PREFIX = "base_model.model.model.layers"


def _module(projection: str) -> str:
    return "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"


def lora_tensors(model: LeanLlama) -> dict[str, torch.Tensor]:
    """The LoRA under PEFT's names, bf16."""
    out = {}
    for projection in PROJECTIONS:
        for layer in range(model.layers):
            name = f"{_PREFIX}.{layer}.{_module(projection)}.{projection}"
            for letter, stack in (("A", model.lora_a), ("B", model.lora_b)):
                out[f"{name}.lora_{letter}.weight"] = (
                    stack[projection][layer].detach().bfloat16().contiguous()
                )
    return out


def save_adapter(
    model: LeanLlama,
    target: Path,
    base: str,
    calibration: dict[str, Any],
    provenance: dict[str, Any],
    card: str,
) -> None:
    """Write the folder beside `target`, then swap it in: a reader sees the old one or the new one, whole."""
    work = target.with_name(f".{target.name}.{os.getpid()}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.rank,
        "lora_alpha": model.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(PROJECTIONS),
    }
    about = {
        "format": FORMAT,
        "family": "aegis-edge",
        "rows": list(ROWS),
        "layers": model.layers,
        "calibration": calibration,
        "base": base,
        "provenance": provenance,
    }
    (work / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (work / "aegis_adapter.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (work / "README.md").write_text(card, encoding="utf-8")
    save_file(lora_tensors(model), work / "adapter_model.safetensors", metadata={"format": "pt"})
    head = {
        "weight": model.head.detach().float().contiguous(),
        "bias": model.head_bias.detach().float().contiguous(),
    }
    save_file(head, work / "verdict_head.safetensors")
    for file in work.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone; an adapter is shipped
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def kept_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A saved adapter's weights by the names of LeanLlama's parameters, a projection's layers stacked."""
    tensors = load_file(folder / "adapter_model.safetensors")
    head = load_file(folder / "verdict_head.safetensors")
    layers = sum(name.endswith("q_proj.lora_A.weight") for name in tensors)
    out = {"head": head["weight"], "head_bias": head["bias"]}
    for projection in PROJECTIONS:
        names = [f"{_PREFIX}.{layer}.{_module(projection)}.{projection}" for layer in range(layers)]
        for letter in "ab":
            stacked = torch.stack([tensors[f"{name}.lora_{letter.upper()}.weight"] for name in names])
            out[f"lora_{letter}.{projection}"] = stacked.float()
    return out


def load_adapter(model: LeanLlama, folder: Path) -> dict[str, Any]:
    """Put a saved adapter into the model; returns aegis_adapter.json."""
    model.load_state_dict(kept_weights(folder))
    about: dict[str, Any] = json.loads((folder / "aegis_adapter.json").read_text(encoding="utf-8"))
    return about
