"""A decoder with the features that Llama's lacks (aegis_edge/features.py), in plain PyTorch: what an artefact
of such a model stores, slow and obvious. It is called as transformers' decoders are.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu

from aegis_edge.features import Features


@dataclass(frozen=True)
class Shape:
    """Sizes as in the manifest; the first three by transformers' names, as its decoders' configs have
    them.
    """

    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float


class FeaturedDecoder(nn.Module):
    """weights: the artefact's names ("layers.0.qkv") -> fp32 matrices [out, in], norms, biases
    ("layers.0.qkv.bias"), Hadamard transforms multiplied out; an absent norm before a matrix is ones.
    frequencies [tables, d / 2].
    """

    def __init__(
        self, shape: Shape, features: Features, weights: dict[str, Tensor], frequencies: Tensor
    ) -> None:
        super().__init__()
        self.config, self.features = shape, features
        self.frequencies = frequencies  # no parameter: never rounded to bf16
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(value, requires_grad=False)
                for name, value in weights.items()
            }
        )

    @property
    def dtype(self) -> torch.dtype:
        return self._get("embed_tokens").dtype

    def _get(self, name: str) -> Tensor:
        return self.weights[name.replace(".", "/")]

    def _find(self, name: str) -> Tensor | None:
        return self._get(name) if name.replace(".", "/") in self.weights else None

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        """ids [1, T]; positions [1, T], 0.. by default; additive mask [1, 1, T, S] over cached and new
        tokens, causal by default, without the windows; a cache of transformers. `last_hidden_state` [1, T,
        H], after the last norm.
        """
        count = input_ids.shape[1]
        positions = torch.arange(count) if position_ids is None else position_ids[0]
        if attention_mask is None:
            attention_mask = torch.full((1, 1, count, count), float("-inf"), dtype=self.dtype).triu(1)
        keys = attention_mask.shape[-1]
        behind = torch.cat([torch.arange(keys - count), positions])  # a cache holds the root alone
        distance = positions[:, None] - behind[None]
        x = self._get("embed_tokens")[input_ids[0]]
        for i in range(self.config.layers):
            window, name = self.features.window(i), f"layers.{i}"
            mask = attention_mask[0]
            if window:
                mask = mask.masked_fill(distance >= window, float("-inf"))
            qkv = linear(
                self._norm(x, f"{name}.input_norm"), self._get(f"{name}.qkv"), self._find(f"{name}.qkv.bias")
            )
            attended = self._attend(i, qkv, positions, mask, past_key_values)
            x = x + self._out_norm(linear(attended, self._get(f"{name}.o")), f"{name}.attention_out_norm")
            gate, up = linear(self._norm(x, f"{name}.post_norm"), self._get(f"{name}.gate_up")).chunk(
                2, dim=-1
            )
            gate = silu(gate) if self.features.activation == "silu" else gelu(gate, approximate="tanh")
            x = x + self._out_norm(linear(gate * up, self._get(f"{name}.down")), f"{name}.mlp_out_norm")
        return SimpleNamespace(last_hidden_state=self._norm(x, "final_norm")[None])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, y = self._find(name), x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return (y if weight is None else y * weight.float()).to(x.dtype)

    def _out_norm(self, x: Tensor, name: str) -> Tensor:
        return self._norm(x, name) if self.features.out_norms else x

    def _attend(self, layer: int, qkv: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        shape, features = self.config, self.features
        d, group = shape.head_dim, shape.heads // shape.kv_heads
        heads = qkv.reshape(len(qkv), -1, d).transpose(0, 1)
        q, k, v = heads.split((shape.heads, shape.kv_heads, shape.kv_heads))
        if features.qk_norm:
            q, k = self._norm(q, f"layers.{layer}.q_norm"), self._norm(k, f"layers.{layer}.k_norm")
        table = features.rope_of[layer] if features.rope_of else 0
        factor = features.rope_factors[table] if features.rope_factors else 1.0
        angles = positions[:, None].float() * self.frequencies[table]
        cos, sin = (angles.cos() * factor).to(q.dtype), (angles.sin() * factor).to(q.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = (x[0] for x in cache.update(k[None], v[None], layer))
        scores = q @ k.repeat_interleave(group, dim=0).transpose(1, 2) * d**-0.5
        if features.attention_softcap:
            scores = torch.tanh(scores / features.attention_softcap) * features.attention_softcap
        shares = torch.softmax((scores + mask).float(), dim=-1).to(v.dtype)
        out = shares @ v.repeat_interleave(group, dim=0)
        return out.transpose(0, 1).reshape(len(qkv), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary on the pairs (i, i + d / 2) of x [..., T, d]; cos and sin [T, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
