"""Which models the runtime can run, what each has beyond Llama, and the name of the feature that keeps
another from running.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis_edge.errors import ExportError
from aegis_edge.features import Features

# Decoders of RMSNorm, RoPE over the whole head, grouped-query attention and a gated MLP. What else they have
# is a feature (aegis_edge/features.py), or a scale that the exporter folds into the weights.
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite")
_LACKING = {
    "gemma3": "a tower for images",
    "qwen3_moe": "mixture of experts",
    "mixtral": "mixture of experts",
    "qwen2_moe": "mixture of experts",
    "phi3": "fused projections with partial RoPE",
    "granitemoe": "mixture of experts",
    "gpt2": "learned positions and LayerNorm",
    "gpt_neox": "LayerNorm and parallel residuals",
    "olmo2": "norms over all query heads at once",
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# longrope has frequencies for short and for long texts: a policy's cached keys would fit one of them only.
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
_PLAIN_ROPE = ("default", "linear", "llama3")  # which the manifest can say without a table


@dataclass(frozen=True)
class Scales:
    """Constants that are folded into the weights. query: on top of 1 / sqrt(head_dim); logits: a divisor."""

    embedding: float = 1.0
    query: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


def check_architecture(config: Any) -> None:
    """Raise ExportError naming the feature the runtime lacks, unless it can run `config` (transformers)."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise _refuse(kind, _LACKING.get(kind, "another decoder than Llama's"))
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    is_gemma3 = kind == "gemma3_text"
    lacking = [
        (_activation(config) not in _ACTIVATIONS, f"activation {_activation(config)!r} (SiLU or tanh GELU)"),
        (getattr(config, "mlp_bias", False), "biases in the MLP"),
        (kind != "qwen2" and getattr(config, "attention_bias", False), "a bias on the attention output"),
        (getattr(config, "use_bidirectional_attention", False), "attention to later tokens"),
        (is_gemma3 and config.attn_logit_softcapping, "an attention soft cap, which transformers leaves out"),
        *((scaling["rope_type"] not in _ROPE_TYPES, f"RoPE scaling {scaling}") for scaling in _ropes(config)),
        (_partial_rotary(config) not in (None, 1.0), "partial RoPE"),
        (heads % config.num_key_value_heads != 0, "query heads that are no multiple of the key heads"),
        (head_dim % 16 != 0, f"a head of {head_dim} (only multiples of 16)"),
        (hidden % 32 != 0 or config.intermediate_size % 32 != 0, "widths that are no multiple of 32"),
    ]
    for is_lacking, feature in lacking:
        if is_lacking:
            raise _refuse(kind, feature)


def features_of(config: Any) -> Features:
    """What the runtime does for this model beyond Llama; its rotary factors are those of `rope_tables`."""
    kind, layers = config.model_type, config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    window = getattr(config, "sliding_window", None) or 0
    window = 0 if window >= config.max_position_embeddings else window
    windows = tuple(window if name == "sliding_attention" else 0 for name in kinds)
    tables = rope_kinds(config)
    return Features(
        activation=_ACTIVATIONS[_activation(config)],
        qk_norm=kind in ("qwen3", "gemma3_text"),
        out_norms=kind in ("gemma2", "gemma3_text"),
        attention_softcap=float(getattr(config, "attn_logit_softcapping", None) or 0.0),
        logit_softcap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
        windows=windows if any(windows) else (),
        rope_of=tuple(tables.index(name if name in tables else None) for name in kinds)
        if needs_table(config)
        else (),
        rope_factors=(1.0,) * len(tables) if needs_table(config) else (),
    )


def scales_of(config: Any) -> Scales:
    """The constants of Gemma (embedding * sqrt(hidden), queries by a number of their own) and Granite."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "granite":
        return Scales(
            float(config.embedding_multiplier),
            float(config.attention_multiplier) * head_dim**0.5,
            float(config.residual_multiplier),
            float(config.logits_scaling),
        )
    query = (head_dim / (getattr(config, "query_pre_attn_scalar", None) or head_dim)) ** 0.5
    return Scales(config.hidden_size**0.5 if is_gemma(config) else 1.0, query)


def is_gemma(config: Any) -> bool:
    """Whether norm weights are stored less one and embeddings are scaled."""
    return str(config.model_type).startswith("gemma")


def beyond_llama(config: Any) -> list[str]:
    """What an engine that is handed a Llama checkpoint would not do, in words."""
    folded = [] if scales_of(config) == Scales() else ["multipliers"]
    return [*features_of(config).names(), *folded]


def rope_parameters(config: Any) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): scaling is None for plain RoPE, else transformers' parameters with `rope_type`,
    without theta. Of a model with two kinds of layers: those of full attention."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    parameters = dict(parameters.get("full_attention") or parameters)
    theta = float(parameters.pop("rope_theta", None) or getattr(config, "rope_theta", 10000.0))
    scaling = parameters or dict(getattr(config, "rope_scaling", None) or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    return theta, None if scaling["rope_type"] == "default" else scaling


def rope_kinds(config: Any) -> list[str | None]:
    """The kinds of layers with a rotary table of their own; [None]: one for all."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in ("full_attention", "sliding_attention") if kind in parameters]
    return [kind for kind in kinds if kind in config.layer_types] or [None]


def needs_table(config: Any) -> bool:
    """Whether the manifest's theta and scaling can not say the frequencies."""
    scaling = rope_parameters(config)[1]
    return rope_kinds(config) != [None] or (scaling or {}).get("rope_type", "default") not in _PLAIN_ROPE


def _ropes(config: Any) -> list[dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    found = [parameters[kind] for kind in rope_kinds(config) if kind is not None]
    return found or [rope_parameters(config)[1] or {"rope_type": "default"}]


def _partial_rotary(config: Any) -> Any:
    return getattr(config, "partial_rotary_factor", None) or (rope_parameters(config)[1] or {}).get(
        "partial_rotary_factor"
    )


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _refuse(kind: str, feature: str) -> ExportError:
    return ExportError(
        f"model type {kind!r} needs {feature}, which the runtime does not have",
        hint=f"decoders that are supported: {', '.join(SUPPORTED)}",
    )
