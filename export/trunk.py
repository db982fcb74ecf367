"""A decoder as plain matrices, whose projections can be exchanged one by one.

The exporter folds, rotates and quantises these, and runs them in between (stream.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aegis_edge.export.architecture import (
    features_of,
    is_gemma,
    needs_table,
    rope_kinds,
    rope_parameters,
    scales_of,
)
from aegis_edge.features import Features

Projection = Callable[[Tensor, Tensor], Tensor]  # of inputs [T, K] and Text.fine [T]
PROJECTIONS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Dims:
    """Sizes of a decoder, in the manifest's names (`model` section of aegis.json)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    norm_eps: float


@dataclass
class Dense:
    """y = x W^T + b in fp32; weight [N, K], bias [N] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor | None = None) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass
class Layer:
    """One decoder block. qkv stacks the rows of Q, K, V; gate_up those of gate, up. input_norm and post_norm
    [H] stand before them; None means ones (folded). q_norm, k_norm [head_dim], and the norms [H] of what
    attention and MLP give: None means none."""

    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection
    input_norm: Tensor | None
    post_norm: Tensor | None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_out_norm: Tensor | None = None
    mlp_out_norm: Tensor | None = None


@dataclass
class Trunk:
    """The whole decoder with its label rows. embed [V, H], head_weight [R, H], head_bias [R]; hadamard_block
    as in the manifest. For label mass, where the labels are tokens: unembed [H, H] where the LM head is tied
    (logits = h . unembed . embed^T), else lm_head [V, H]. ropes: rotary tables, fp32 [head_dim / 2] and the
    factor on cos and sin; features.rope_of says which is whose, else the first is every layer's."""

    dims: Dims
    embed: Tensor
    layers: list[Layer]
    final_norm: Tensor | None
    head_weight: Tensor
    head_bias: Tensor
    hadamard_block: int = 0
    unembed: Tensor | None = None
    lm_head: Tensor | None = None
    features: Features = field(default_factory=Features)
    ropes: list[tuple[Tensor, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Text:
    """Flat calibration tokens. ids [T]; the first `root` tokens are the policy; `starts` are the
    conversations' first tokens (ends = the next start, T at last); `slots` index ids, with `rows` naming for
    each the pair of label rows (safe, unsafe); `has_fine`: whether the engine has second digits."""

    ids: Tensor
    root: int
    starts: tuple[int, ...]
    slots: Tensor
    pairs: Tensor
    has_fine: bool = True

    @property
    def fine(self) -> Tensor:
        """bool [T]: tokens whose int8 inputs have two digits in the runtime: the policy's and the slots."""
        fine = torch.zeros(len(self.ids), dtype=torch.bool)
        if self.has_fine:
            fine[: self.root] = True
            fine[self.slots] = True
        return fine

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, end) of the root, then of every conversation."""
        yield 0, self.root
        yield from zip(self.starts, (*self.starts[1:], len(self.ids)), strict=True)

    def positions(self) -> Tensor:
        """Depth of each token from the root's first, int64 [T]."""
        parts = [torch.arange(self.root)]
        parts += [torch.arange(self.root, self.root + end - start) for start, end in list(self.spans())[1:]]
        return torch.cat(parts)


def dims_of(config: Any) -> Dims:
    """Read the sizes from a transformers config."""
    theta, scaling = rope_parameters(config)
    heads = config.num_attention_heads
    return Dims(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        rope_theta=theta,
        rope_scaling=None if needs_table(config) else scaling,
        norm_eps=float(config.rms_norm_eps),
    )


def trunk_of(model: Any, head_weight: Tensor, head_bias: Tensor, softcap: float = 0.0) -> Trunk:
    """The trunk of a transformers decoder, sharing nothing with it, all fp32; the architecture's constants
    are folded in, the LM head's excepted. softcap: of the label logits.
    """
    scales, ropes = scales_of(model.config), rope_tables(model)
    features = replace(features_of(model.config), logit_softcap=softcap)
    if features.rope_of:
        features = replace(features, rope_factors=tuple(factor for _, factor in ropes))
    return Trunk(
        dims=dims_of(model.config),
        embed=model.model.embed_tokens.weight.detach().float() * scales.embedding,
        layers=[_layer(block, model.config) for block in model.model.layers],
        final_norm=_norm_of(model.model.norm, model.config),
        head_weight=head_weight.float().clone(),
        head_bias=head_bias.float().clone(),
        features=features,
        ropes=ropes,
    )


def _layer(block: Any, config: Any) -> Layer:
    """One block of transformers. The scale of its queries goes into their norm or, without one, their
    rows.
    """
    attention, mlp, scales, features = block.self_attn, block.mlp, scales_of(config), features_of(config)

    def dense(*linears: Any) -> Dense:
        weight = torch.cat([linear.weight.detach() for linear in linears]).float()
        has_bias = linears[0].bias is not None
        return Dense(
            weight, torch.cat([linear.bias.detach() for linear in linears]).float() if has_bias else None
        )

    def norm(module: Any) -> Tensor:
        return _norm_of(module, config)

    qkv, o, down = (
        dense(attention.q_proj, attention.k_proj, attention.v_proj),
        dense(attention.o_proj),
        mlp.down_proj,
    )
    before_mlp = block.pre_feedforward_layernorm if features.out_norms else block.post_attention_layernorm
    layer = Layer(
        qkv, o, dense(mlp.gate_proj, mlp.up_proj), dense(down), norm(block.input_layernorm), norm(before_mlp)
    )
    if features.out_norms:
        layer.attention_out_norm = norm(block.post_attention_layernorm)
        layer.mlp_out_norm = norm(block.post_feedforward_layernorm)
    if features.qk_norm:
        layer.q_norm, layer.k_norm = norm(attention.q_norm) * scales.query, norm(attention.k_norm)
    else:
        for rows in (qkv.weight, qkv.bias):
            if rows is not None:
                rows[: attention.q_proj.out_features] *= scales.query
    for linear in (layer.o, layer.down):
        assert isinstance(linear, Dense)
        linear.weight *= scales.residual
    return layer


def _norm_of(module: Any, config: Any) -> Tensor:
    """The weight of an RMSNorm; Gemma stores it less one."""
    weight: Tensor = module.weight.detach().float()
    return weight + 1.0 if is_gemma(config) else weight.clone()


def keep_vocabulary(trunk: Trunk, model: Any) -> None:
    """Keep the whole LM head, so that the guard can say which share of it its label tokens hold."""
    head, scales = model.get_output_embeddings().weight, scales_of(model.config)
    if head is model.get_input_embeddings().weight:
        trunk.unembed = torch.eye(trunk.dims.hidden) / (scales.embedding * scales.logits)
    else:
        trunk.lm_head = head.detach().float() / scales.logits


def rope_tables(model: Any) -> list[tuple[Tensor, float]]:
    """Inverse frequencies fp32 [head_dim / 2] and the factor on cos and sin, in the order of `rope_kinds`, as
    transformers computes them. `dynamic` ones are those up to the context, past which no check goes."""
    rotary = model.model.rotary_emb
    names = ["" if kind is None else f"{kind}_" for kind in rope_kinds(model.config)]
    return [
        (
            getattr(rotary, f"{name}inv_freq").float().clone(),
            float(getattr(rotary, f"{name}attention_scaling")),
        )
        for name in names
    ]


def hadamard(x: Tensor, block: int) -> Tensor:
    """Normalised Walsh-Hadamard transform (Sylvester order) of the last dimension in blocks; block 0 =
    identity. Its own inverse."""
    if block == 0:
        return x
    shape = x.shape
    y = x.reshape(-1, block)
    width = 1
    while width < block:
        pairs = y.reshape(-1, block // (2 * width), 2, width)
        y = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), dim=2)
        width *= 2
    return (y.reshape(shape)) * block**-0.5
