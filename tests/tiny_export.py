"""A tiny random base as a Hugging Face folder, and PEFT adapters for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS = 128, 4, 2, 32, 192, 2
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_model(vocab: int, kind: str = "llama", tied: bool = True, seed: int = 1) -> Any:
    """A random LlamaForCausalLM (or Qwen2ForCausalLM, which has biases) in fp32, norms far from one."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": tied,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(head_dim=HEAD_DIM, **sizes))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.7)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


def write_base(folder: Path, tokenizer: Tokenizer, kind: str = "llama", tied: bool = True) -> Any:
    """Save a tiny base with its tokenizer; returns the model."""
    model = tiny_model(tokenizer.get_vocab_size(), kind, tied)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def write_adapter(folder: Path, model: Any, nested: bool = False, head: bool = True) -> Path:
    """Save a random LoRA for `model` (a copy of it is wrapped) with label rows, in either layout."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS, task_type="CAUSAL_LM")
    wrapped = get_peft_model(copy, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    inner = folder / "some-adapter" if nested else folder
    wrapped.save_pretrained(inner)
    if head:
        rows = {"weight": torch.randn(6, HIDDEN) * 0.3, "bias": torch.randn(6) * 0.1}
        save_file(rows, inner / "verdict_head.safetensors")
    card = {
        "format": 1,
        "family": "aegis-edge",
        "calibration": {"prompt": {"temperature": 1.5, "bias": 0.25}},
        "provenance": {"steps": 3},
    }
    (inner / "aegis_adapter.json").write_text(json.dumps(card))
    return folder
