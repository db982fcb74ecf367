"""A tiny random model of every architecture that the runtime takes, made with transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOW = 24  # shorter than any path of the tests
_MIXED = ["sliding_attention", "full_attention"] * 2


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


_SCALED = {"factor": 8.0, "original_max_position_embeddings": 64}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **_SCALED}
# Name -> (class, what its config has besides SIZES).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 32, "tie_word_embeddings": False}),
    "llama3": ("Llama", {"head_dim": 32, **_rope("llama3", **_LLAMA3)}),
    "llama-linear": ("Llama", {"head_dim": 32, **_rope("linear", factor=4.0)}),
    "llama-dynamic": ("Llama", {"head_dim": 32, **_rope("dynamic", factor=4.0)}),
    "llama-yarn": ("Llama", {"head_dim": 32, **_rope("yarn", **_SCALED)}),
    "mistral": ("Mistral", {"head_dim": 32, "sliding_window": WINDOW, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"hidden_size": 128, "tie_word_embeddings": True, "sliding_window": None}),
    "qwen2-window": (
        "Qwen2",
        {"hidden_size": 128, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 48}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, **_rope("yarn", **_SCALED)}),
    "granite": (
        "Granite",
        {
            "hidden_size": 128,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
            "logits_scaling": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 256,
            "layer_types": _MIXED,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 64,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 80,
            "layer_types": _MIXED,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 100,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def make(name: str, vocab: int, **changes: Any) -> Any:
    """A random model in fp32 whose weights are bf16 numbers, norms far from one, attention far from
    uniform.
    """
    kind, options = ARCHITECTURES[name]
    config_class = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    torch.manual_seed(3)
    config = config_class(vocab_size=vocab, **{**SIZES, **options, **changes})
    # Of transformers' attentions only this one caps its scores.
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="eager")
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            low, high = (-0.7, 0.7) if kind.startswith("Gemma") else (0.3, 1.7)
            torch.nn.init.uniform_(parameter, low, high)
        elif parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
        parameter.data = parameter.data.bfloat16().float()
    return model.eval()


def write(folder: Path, model: Any, tokenizer: Tokenizer) -> str:
    """Save it as a base; returns the folder's name."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)
