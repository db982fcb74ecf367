"""A Llama-shaped decoder as plain matrices, whose projections can be exchanged one by one.

The exporter folds, rotates and quantises matrices, and must run the model in between: to collect what each
projection sees, and to tell how far the quantised model has moved. This is that model, in fp32, over *flat*
calibration text: the root's tokens first, then every conversation's, one after another, as the runtime packs
them. A conversation attends to the root and to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aegis_edge.export.architecture import rope_parameters

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
    """One decoder block. qkv stacks the rows of Q, K, V; gate_up those of gate, up. A norm weight of None
    means ones (folded)."""

    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection
    input_norm: Tensor | None
    post_norm: Tensor | None


@dataclass
class Trunk:
    """The whole decoder with its label rows. embed [V, H], head_weight [R, H], head_bias [R]; hadamard_block
    as in the manifest. For label mass, where the labels are tokens: unembed [H, H] where the LM head is tied
    (logits = h . unembed . embed^T), else lm_head [V, H]."""

    dims: Dims
    embed: Tensor
    layers: list[Layer]
    final_norm: Tensor | None
    head_weight: Tensor
    head_bias: Tensor
    hadamard_block: int = 0
    unembed: Tensor | None = None
    lm_head: Tensor | None = None
    rope: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.empty(0), torch.empty(0)))


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
        rope_scaling=scaling,
        norm_eps=float(config.rms_norm_eps),
    )


def trunk_of(model: Any, head_weight: Tensor, head_bias: Tensor) -> Trunk:
    """The trunk of a transformers decoder, sharing nothing with it; all fp32."""

    def dense(*linears: Any) -> Dense:
        weight = torch.cat([linear.weight.detach() for linear in linears]).float()
        has_bias = linears[0].bias is not None
        return Dense(
            weight, torch.cat([linear.bias.detach() for linear in linears]).float() if has_bias else None
        )

    layers = [
        Layer(
            qkv=dense(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            o=dense(block.self_attn.o_proj),
            gate_up=dense(block.mlp.gate_proj, block.mlp.up_proj),
            down=dense(block.mlp.down_proj),
            input_norm=block.input_layernorm.weight.detach().float().clone(),
            post_norm=block.post_attention_layernorm.weight.detach().float().clone(),
        )
        for block in model.model.layers
    ]
    return Trunk(
        dims=dims_of(model.config),
        embed=model.model.embed_tokens.weight.detach().float().clone(),
        layers=layers,
        final_norm=model.model.norm.weight.detach().float().clone(),
        head_weight=head_weight.float().clone(),
        head_bias=head_bias.float().clone(),
        rope=rope_tables(model.config, model.model.rotary_emb),
    )


def keep_vocabulary(trunk: Trunk, model: Any) -> None:
    """Keep the whole LM head, so that the guard can say which share of it its label tokens hold."""
    head = model.get_output_embeddings().weight
    if head is model.get_input_embeddings().weight:
        trunk.unembed = torch.eye(trunk.dims.hidden)
    else:
        trunk.lm_head = head.detach().float().clone()


def rope_tables(config: Any, rotary: Any) -> tuple[Tensor, Tensor]:
    """cos, sin fp32 [context, head_dim] as transformers computes them (scaled RoPE included)."""
    positions = torch.arange(config.max_position_embeddings)[None]
    cos, sin = rotary(torch.zeros(1, dtype=torch.float32), positions)
    return cos[0].float(), sin[0].float()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension; weight None = ones."""
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


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


def attend(trunk: Trunk, text: Text, qkv: Tensor, positions: Tensor, rounded: bool = False) -> Tensor:
    """Grouped-query attention of every span to the root and itself: qkv [T, (heads + 2 kv_heads) d] ->
    context [T, heads d]. `rounded`: queries, keys and values through bf16, as the runtime holds them."""
    dims, d = trunk.dims, trunk.dims.head_dim
    q, k, v = qkv.reshape(len(qkv), -1, d).transpose(0, 1).split((dims.heads, dims.kv_heads, dims.kv_heads))
    cos, sin = trunk.rope[0][positions], trunk.rope[1][positions]
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if rounded:
        q, k, v = (x.bfloat16().float() for x in (q, k, v))
    out = torch.empty_like(q)
    for start, end in text.spans():
        n, prefix = end - start, 0 if start == 0 else text.root
        keys = torch.cat((k[:, :prefix], k[:, start:end]), dim=1)
        values = torch.cat((v[:, :prefix], v[:, start:end]), dim=1)
        mask = torch.ones(n, prefix + n, dtype=torch.bool).tril(prefix)
        out[:, start:end] = functional.scaled_dot_product_attention(
            q[None, :, start:end], keys[None], values[None], attn_mask=mask, enable_gqa=True
        )[0]
    return out.transpose(0, 1).reshape(len(qkv), -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Stream:
    """A run of calibration text through a trunk, stopped before each projection: what goes in can be looked
    at, and the projection exchanged, before it is applied. `hidden` is the residual stream [T, H]; `rounded`
    as in `attend`."""

    def __init__(self, trunk: Trunk, text: Text, rounded: bool = False) -> None:
        self.trunk, self.text, self.rounded = trunk, text, rounded
        self.positions = text.positions()
        self.hidden = trunk.embed[text.ids]
        self._inner = torch.empty(0)

    def inputs(self, layer: Layer, name: str) -> Tensor:
        """What projection `name` of `layer` sees, [T, K]; names must be asked for in the order of
        PROJECTIONS."""
        eps = self.trunk.dims.norm_eps
        if name == "qkv":
            return rms_norm(self.hidden, layer.input_norm, eps)
        if name == "o":
            return attend(self.trunk, self.text, self._inner, self.positions, self.rounded)
        if name == "gate_up":
            return rms_norm(self.hidden, layer.post_norm, eps)
        gate, up = self._inner.chunk(2, dim=-1)
        return hadamard(functional.silu(gate) * up, self.trunk.hadamard_block)

    def apply(self, name: str, projected: Tensor) -> None:
        """Take what projection `name` gave for the inputs last asked for."""
        if name in ("qkv", "gate_up"):
            self._inner = projected
        else:
            self.hidden = self.hidden + projected

    def logits(self) -> Tensor:
        """Label logits at the text's slots, fp32 [slots, R]; after the last layer."""
        trunk = self.trunk
        h = rms_norm(self.hidden[self.text.slots], trunk.final_norm, trunk.dims.norm_eps)
        return functional.linear(h, trunk.head_weight, trunk.head_bias)


def run(trunk: Trunk, text: Text, rounded: bool = False) -> Tensor:
    """Label logits of `text` under `trunk`, fp32 [slots, R]; `rounded` as in `attend`."""
    stream = Stream(trunk, text, rounded)
    for layer in trunk.layers:
        for name in PROJECTIONS:
            stream.apply(name, getattr(layer, name)(stream.inputs(layer, name), text.fine))
    return stream.logits()
