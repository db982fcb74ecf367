"""Which models the runtime can run, and the name of the feature that keeps another from running."""

from __future__ import annotations

from typing import Any

from aegis_edge.errors import ExportError

# Llama's decoder: RMSNorm, RoPE over the whole head, grouped-query attention, SwiGLU. Mistral is the same
# without its window; Qwen2 adds biases to Q, K and V.
SUPPORTED = ("llama", "mistral", "qwen2")
_LACKING = {
    "gemma": "scaled embeddings and GeGLU",
    "gemma2": "logit soft-capping and sandwich norms",
    "gemma3": "sandwich norms and interleaved sliding windows",
    "gemma3_text": "sandwich norms and interleaved sliding windows",
    "qwen3": "query and key normalisation",
    "qwen3_moe": "mixture of experts",
    "mixtral": "mixture of experts",
    "qwen2_moe": "mixture of experts",
    "phi3": "fused projections with partial RoPE",
    "granite": "embedding, residual and attention multipliers",
    "granitemoe": "mixture of experts",
    "gpt2": "learned positions and LayerNorm",
    "gpt_neox": "LayerNorm and parallel residuals",
    "olmo2": "norms after the blocks",
}
_ROPE_TYPES = ("default", "linear", "llama3")


def check_architecture(config: Any) -> None:
    """Raise ExportError naming the feature the runtime lacks, unless `config` (transformers) is a
    Llama-shaped decoder."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise _refuse(kind, _LACKING.get(kind, "another decoder than Llama's"))
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    rope_type = rope_parameters(config)[1]
    lacking = [
        (config.hidden_act != "silu", f"activation {config.hidden_act!r} (only SwiGLU)"),
        (getattr(config, "mlp_bias", False), "biases in the MLP"),
        (kind == "llama" and getattr(config, "attention_bias", False), "a bias on the attention output"),
        (kind == "mistral" and getattr(config, "sliding_window", None), "sliding-window attention"),
        (kind == "qwen2" and getattr(config, "use_sliding_window", False), "sliding-window attention"),
        (rope_type is not None and rope_type["rope_type"] not in _ROPE_TYPES, f"RoPE scaling {rope_type}"),
        (getattr(config, "partial_rotary_factor", 1.0) not in (None, 1.0), "partial RoPE"),
        (heads % config.num_key_value_heads != 0, "query heads that are no multiple of the key heads"),
        (head_dim % 16 != 0, f"a head of {head_dim} (only multiples of 16)"),
        (hidden % 32 != 0 or config.intermediate_size % 32 != 0, "widths that are no multiple of 32"),
    ]
    for is_lacking, feature in lacking:
        if is_lacking:
            raise _refuse(kind, feature)


def rope_parameters(config: Any) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): scaling is None for plain RoPE, else transformers' parameters with `rope_type`,
    without theta."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    theta = float(parameters.pop("rope_theta", None) or getattr(config, "rope_theta", 10000.0))
    scaling = parameters or dict(getattr(config, "rope_scaling", None) or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    return theta, None if scaling["rope_type"] == "default" else scaling


def _refuse(kind: str, feature: str) -> ExportError:
    return ExportError(
        f"model type {kind!r} needs {feature}, which the runtime does not have",
        hint=f"Llama-shaped decoders are supported: {', '.join(SUPPORTED)}",
    )
