"""A run of a trunk, stopped before each projection.

It is the runtime's forward pass in fp32 over *flat* calibration text: the root's tokens first, then every
conversation's, one after another, as the runtime packs them. A conversation attends to the root and to
itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aegis_edge.export.trunk import PROJECTIONS, Text, Trunk, hadamard
from aegis_edge.scoring.featured import rotate


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension; weight None = ones."""
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def attend(
    trunk: Trunk, index: int, text: Text, qkv: Tensor, cos: Tensor, sin: Tensor, rounded: bool = False
) -> Tensor:
    """Grouped-query attention of layer `index`, of every span to the root and itself: qkv [T, (heads + 2
    kv_heads) d], cos and sin [T, d / 2] -> context [T, heads d]. `rounded`: queries, keys and values through
    bf16, as the runtime holds them."""
    dims, d, layer = trunk.dims, trunk.dims.head_dim, trunk.layers[index]
    window, cap = trunk.features.window(index), trunk.features.attention_softcap
    q, k, v = qkv.reshape(len(qkv), -1, d).transpose(0, 1).split((dims.heads, dims.kv_heads, dims.kv_heads))
    if trunk.features.qk_norm:
        q, k = rms_norm(q, layer.q_norm, dims.norm_eps), rms_norm(k, layer.k_norm, dims.norm_eps)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if rounded:
        q, k, v = (x.bfloat16().float() for x in (q, k, v))
    out = torch.empty_like(q)
    for start, end in text.spans():
        n, prefix = end - start, 0 if start == 0 else text.root
        keys = torch.cat((k[:, :prefix], k[:, start:end]), dim=1)
        values = torch.cat((v[:, :prefix], v[:, start:end]), dim=1)
        mask = torch.ones(n, prefix + n, dtype=torch.bool).tril(prefix)
        if window:
            mask = mask.triu(prefix - window + 1)
        queries = q[None, :, start:end]
        if cap:
            scores = (
                queries[0] @ keys.repeat_interleave(dims.heads // dims.kv_heads, 0).transpose(1, 2) * d**-0.5
            )
            scores = (cap * torch.tanh(scores / cap)).masked_fill(~mask, float("-inf"))
            shares = scores.softmax(-1)
            out[:, start:end] = shares @ values.repeat_interleave(dims.heads // dims.kv_heads, 0)
            continue
        out[:, start:end] = functional.scaled_dot_product_attention(
            queries, keys[None], values[None], attn_mask=mask, enable_gqa=True
        )[0]
    return out.transpose(0, 1).reshape(len(qkv), -1)


class Stream:
    """A run of calibration text through a trunk, stopped before each projection: what goes in can be looked
    at, and the projection exchanged, before it is applied. `hidden` is the residual stream [T, H]; `rounded`
    as in `attend`."""

    def __init__(self, trunk: Trunk, text: Text, rounded: bool = False) -> None:
        self.trunk, self.text, self.rounded = trunk, text, rounded
        positions = text.positions()[:, None].float()
        angles = [(positions * frequency, factor) for frequency, factor in trunk.ropes]
        self.ropes = [(angle.cos() * factor, angle.sin() * factor) for angle, factor in angles]
        self.hidden = trunk.embed[text.ids]
        self._inner = torch.empty(0)

    def inputs(self, index: int, name: str) -> Tensor:
        """What projection `name` of layer `index` sees, [T, K]; names must be asked for in the order of
        PROJECTIONS."""
        trunk, layer, features = self.trunk, self.trunk.layers[index], self.trunk.features
        if name in ("qkv", "gate_up"):
            weight = layer.input_norm if name == "qkv" else layer.post_norm
            return hadamard(rms_norm(self.hidden, weight, trunk.dims.norm_eps), features.input_block)
        if name == "o":
            rope = self.ropes[features.rope_of[index] if features.rope_of else 0]
            return attend(trunk, index, self.text, self._inner, *rope, self.rounded)
        gate, up = self._inner.chunk(2, dim=-1)
        gate = (
            functional.silu(gate)
            if features.activation == "silu"
            else functional.gelu(gate, approximate="tanh")
        )
        return hadamard(gate * up, trunk.hadamard_block)

    def apply(self, index: int, name: str, projected: Tensor) -> None:
        """Take what projection `name` of layer `index` gave for the inputs last asked for."""
        if name in ("qkv", "gate_up"):
            self._inner = projected
            return
        layer = self.trunk.layers[index]
        norm = layer.attention_out_norm if name == "o" else layer.mlp_out_norm
        if norm is not None:
            projected = rms_norm(projected, norm, self.trunk.dims.norm_eps)
        self.hidden = self.hidden + projected

    def logits(self) -> Tensor:
        """Label logits at the text's slots, fp32 [slots, R]; after the last layer."""
        trunk = self.trunk
        h = rms_norm(self.hidden[self.text.slots], trunk.final_norm, trunk.dims.norm_eps)
        logits = functional.linear(h, trunk.head_weight, trunk.head_bias)
        cap = trunk.features.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits


def run(trunk: Trunk, text: Text, rounded: bool = False) -> Tensor:
    """Label logits of `text` under `trunk`, fp32 [slots, R]; `rounded` as in `attend`."""
    stream = Stream(trunk, text, rounded)
    for index, layer in enumerate(trunk.layers):
        for name in PROJECTIONS:
            stream.apply(index, name, getattr(layer, name)(stream.inputs(index, name), text.fine))
    return stream.logits()
