"""A Llama decoder that trains LoRA fast on a CPU: frozen bf16 weights, one shared policy root, batched
examples.

Why not transformers + peft: a step of short examples pays for the policy once here, q/k/v and gate/up run as
one matrix product each, the elementwise chains are compiled into one loop each, and the last layer's MLP sees
verdict slots only. On two cores with AVX512-BF16 that is about four times faster. `tests/test_train_model.py`
holds it to transformers + peft.

    h   = x + Wo . attention(rope(Wqkv . norm(x)))
    x'  = h + Wd . (silu(gate) * up),  [gate; up] = Wgu . norm(h)
    W v = W0 v + (alpha / rank) * B (A v)      for each of the seven projections
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Projections that read the same input are stacked; the order is the stacking order of their rows.
STACKS: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
PROJECTIONS: tuple[str, ...] = tuple(p for stack in STACKS.values() for p in stack)


Pair = tuple[Tensor, Tensor]  # A [ranks, in], B [out, ranks]
RootCache = list[tuple[Tensor, Tensor]]  # keys and values of the root, a layer each [kv heads, P, d]


@dataclass(frozen=True)
class Group:
    """Examples padded to one length. The root is seen by all; `mask` is about the examples' own tokens.

    ids, positions: int64 [B, L]; positions count from the end of the root.
    mask: float [B, L, L], 0 where a token may look, -inf elsewhere.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Pack:
    """What one forward sees after a root: groups of examples, and the slots where label logits are read.

    slots: int64 [S], indices into the groups' tokens flattened in order.
    """

    groups: tuple[Group, ...]
    slots: Tensor


class LoraLinear(torch.autograd.Function):
    """y = x W^T + (x A^T) B^T with W frozen: no gradient and no saved buffer for W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        u = x @ a.t()
        y = torch.addmm(x @ weight.t(), u, b.t())
        ctx.save_for_backward(x, u, weight, a, b)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u, weight, a, b = ctx.saved_tensors
        t = grad @ b
        dx = torch.addmm(grad @ weight, t, a) if ctx.needs_input_grad[0] else None
        return dx, None, t.t() @ x, grad.t() @ u


class TreeAttention(torch.autograd.Function):
    """softmax(q [root k; own k]^T / sqrt(d) + mask) [root v; own v], with no gradient for the root.

    q [kv, B, R, d] (R = query rows), own k and v [kv, B, L, d], root k and v [kv, P, d], mask [B, R, L] for
    own keys. torch's fused CPU kernel runs the forward; its backward is four times slower than these few
    products at the sizes of a pack, where most keys are the root's: those join into one product over all
    examples.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        root_k: Tensor,
        root_v: Tensor,
        mask: Tensor,
        score_gradient: Callable[..., tuple[Tensor, Tensor]],
    ) -> Tensor:
        batch = q.shape[1]
        keys = torch.cat((root_k[:, None].expand(-1, batch, -1, -1), k), 2).transpose(0, 1)
        values = torch.cat((root_v[:, None].expand(-1, batch, -1, -1), v), 2).transpose(0, 1)
        whole = F.pad(mask, (root_k.shape[1], 0))[:, None].expand(-1, q.shape[0], -1, -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.transpose(0, 1), keys, values, attn_mask=whole
        )
        out = out.transpose(0, 1)
        ctx.save_for_backward(q, k, v, root_k, root_v, mask, out, lse)
        ctx.score_gradient = score_gradient
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, root_k, root_v, mask, out, lse = ctx.saved_tensors
        kv, batch, rows, dim = q.shape
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        lse = lse.transpose(0, 1)[..., None].float()
        flat_q, flat_grad = q.reshape(kv, batch * rows, dim), grad.view(kv, batch * rows, dim)
        root_shape = (kv, batch, rows, -1)
        scores = (flat_q @ root_k.transpose(1, 2)).view(root_shape)
        _, ds_root = ctx.score_gradient(
            scores, (flat_grad @ root_v.transpose(1, 2)).view(root_shape), lse, delta, None, dim**-0.5
        )
        p, ds = ctx.score_gradient(
            q @ k.transpose(2, 3), grad @ v.transpose(2, 3), lse, delta, mask, dim**-0.5
        )
        dq = (ds_root.view(kv, batch * rows, -1) @ root_k).view(q.shape) + ds @ k
        return dq, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ grad, None, None, None, None


def score_gradient(
    scores: Tensor, dp: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax weights again from scores, and the gradient of the unscaled scores: p, scale * p (dp -
    delta).
    """
    logits = scores.float() * scale
    if mask is not None:
        logits = logits + mask.float()
    p = torch.exp(logits - lse)
    return p.to(scores.dtype), (p * (dp.float() - delta) * scale).to(scores.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    f = x.float()
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the rotate-half layout. x [T, heads, d]; cos, sin float32 [T, 1, d / 2]."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class LeanLlama(nn.Module):
    """Frozen decoder + LoRA + label rows. Parameters are fp32 and stacked over layers; compute is in
    `dtype`.
    """

    def __init__(
        self,
        base: LlamaForCausalLM,
        rows: int = 6,
        rank: int = 16,
        alpha: float = 32.0,
        dtype: torch.dtype = torch.bfloat16,
        compiled: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config: Any = base.config
        if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
            raise ValueError("training supports Llama layers without biases")
        self.layers = int(config.num_hidden_layers)
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.eps = float(config.rms_norm_eps)
        self.theta = float(config.rope_parameters["rope_theta"])
        self.rank, self.alpha, self.dtype = rank, alpha, dtype
        self.embed = base.model.embed_tokens.weight.detach().to(dtype)
        self.final_norm = base.model.norm.weight.detach().float()
        self.weights: list[dict[str, Tensor]] = []
        self.sizes: dict[str, list[tuple[int, int]]] = {}
        for layer in base.model.layers:
            parts = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
            matrices = {s: [parts[p].weight.detach().to(dtype) for p in ps] for s, ps in STACKS.items()}
            self.sizes = {s: [(int(w.shape[0]), int(w.shape[1])) for w in ws] for s, ws in matrices.items()}
            self.weights.append(
                {s: torch.cat(ws) for s, ws in matrices.items()}
                | {"norm1": layer.input_layernorm.weight.detach().float()}
                | {"norm2": layer.post_attention_layernorm.weight.detach().float()}
            )
        generator = torch.Generator().manual_seed(seed)
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        for stack, projections in STACKS.items():
            for projection, (out, into) in zip(projections, self.sizes[stack], strict=True):
                bound = 1.0 / math.sqrt(into)  # peft's default: kaiming uniform with a = sqrt(5)
                a = torch.empty(self.layers, rank, into).uniform_(-bound, bound, generator=generator)
                self.lora_a[projection] = nn.Parameter(a)
                self.lora_b[projection] = nn.Parameter(torch.zeros(self.layers, out, rank))
        hidden = config.hidden_size
        self.head = nn.Parameter(torch.zeros(rows, hidden))
        self.head_bias = nn.Parameter(torch.zeros(rows))
        self._norm = torch.compile(rms_norm, dynamic=True, disable=not compiled)
        self._swiglu = torch.compile(swiglu, dynamic=True, disable=not compiled)
        self._rotate = torch.compile(rotate, dynamic=True, disable=not compiled)
        self._score_gradient = torch.compile(score_gradient, dynamic=True, disable=not compiled)

    def _adapters(self) -> list[dict[str, Pair]]:
        """Per layer and stack: A [ranks, in] and block-diagonal B [out, ranks], scaled, in the compute
        dtype.
        """
        stacked: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
        for stack, projections in STACKS.items():
            a = torch.cat([self.lora_a[p] for p in projections], 1).to(self.dtype)
            blocks, offset, width = [], 0, self.rank * len(projections)
            for p in projections:
                b = self.lora_b[p] * (self.alpha / self.rank)
                blocks.append(F.pad(b, (offset, width - offset - self.rank)))
                offset += self.rank
            stacked[stack] = (a.unbind(0), torch.cat(blocks, 1).to(self.dtype).unbind(0))
        return [{s: (a[i], b[i]) for s, (a, b) in stacked.items()} for i in range(self.layers)]

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary angles, float32 [T, 1, d / 2]."""
        half = self.head_dim // 2
        inverse = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = positions[:, None, None].double() * inverse
        return angles.cos().float(), angles.sin().float()

    def _qkv(
        self, x: Tensor, w: dict[str, Tensor], lora: Pair, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [T, heads, d], rotated keys and values [T, kv, d]."""
        heads, kv, dim = self.heads, self.kv_heads, self.head_dim
        qkv = LoraLinear.apply(self._norm(x, w["norm1"], self.eps), w["qkv"], *lora)
        # split, not slices: the gradient of a split is one concatenation, that of each slice a zero-filled
        # whole
        turning, values = qkv.split(((heads + kv) * dim, kv * dim), 1)
        q, k = self._rotate(turning.view(-1, heads + kv, dim), cos, sin).split((heads, kv), 1)
        return q, k, values.view(-1, kv, dim)

    def _after(self, x: Tensor, mixed: Tensor, w: dict[str, Tensor], lora: dict[str, Pair]) -> Tensor:
        """Output projection, MLP and both residual sums."""
        x = x + LoraLinear.apply(mixed, w["o"], *lora["o"])
        gate_up = LoraLinear.apply(self._norm(x, w["norm2"], self.eps), w["gate_up"], *lora["gate_up"])
        return x + LoraLinear.apply(self._swiglu(gate_up), w["down"], *lora["down"])

    @torch.no_grad()
    def root(self, ids: Sequence[int]) -> RootCache:
        """Keys and values of a policy root under the present LoRA.

        No gradient flows through the root: it is the same for all examples, and leaving it out of the
        backward pass (and computing it once a step, not once a worker) saves a sixth of the time.
        """
        cos, sin = self._turns(torch.arange(len(ids)))
        x = F.embedding(torch.tensor(list(ids)), self.embed)
        cache: RootCache = []
        group = self.heads // self.kv_heads
        for number, (w, lora) in enumerate(zip(self.weights, self._adapters(), strict=True)):
            q, k, v = self._qkv(x, w, lora["qkv"], cos, sin)
            cache.append((k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()))
            if number == self.layers - 1:
                break  # only keys and values of the last layer are ever looked at
            keys, values = (t.repeat_interleave(group, 1).transpose(0, 1)[None] for t in (k, v))
            mixed = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, is_causal=True)
            x = self._after(x, mixed[0].transpose(0, 1).reshape(len(ids), -1), w, lora)
        return cache

    def hidden(self, pack: Pack, root: RootCache) -> Tensor:
        """Final-normed hidden states at the pack's slots, float32 [S, hidden]."""
        root_len = int(root[0][0].shape[1])
        cos, sin = self._turns(torch.cat([g.positions.reshape(-1) for g in pack.groups]) + root_len)
        masks = [g.mask.to(self.dtype).repeat_interleave(self.heads // self.kv_heads, 1) for g in pack.groups]
        x = F.embedding(torch.cat([g.ids.reshape(-1) for g in pack.groups]), self.embed)
        for number, (w, lora) in enumerate(zip(self.weights, self._adapters(), strict=True)):
            mixed = self._attention(*self._qkv(x, w, lora["qkv"], cos, sin), root[number], pack.groups, masks)
            if number == self.layers - 1:  # nothing after the last attention looks at other tokens
                x, mixed = x[pack.slots], mixed[pack.slots]
            x = self._after(x, mixed, w, lora)
        return rms_norm(x.float(), self.final_norm, self.eps)

    def forward(self, pack: Pack, root: RootCache) -> Tensor:
        """Label logits at the slots, float32 [S, rows]."""
        return F.linear(self.hidden(pack, root), self.head, self.head_bias)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        root: tuple[Tensor, Tensor],
        groups: tuple[Group, ...],
        masks: list[Tensor],
    ) -> Tensor:
        """Each example looks at the root and at itself. q [T, heads, d], k and v [T, kv, d] -> [T, heads *
        d].

        Grouped-query attention with the query heads of a KV head as extra query rows, so K and V stay
        unrepeated.
        """
        heads, kv, dim = self.heads, self.kv_heads, self.head_dim
        sizes = [g.ids.numel() for g in groups]
        parts = []
        for queries, keys, values, group, mask in zip(
            q.split(sizes), k.split(sizes), v.split(sizes), groups, masks, strict=True
        ):
            count, length = group.ids.shape
            rows = queries.reshape(count, length, kv, heads // kv, dim).permute(2, 0, 1, 3, 4)
            own_k = keys.reshape(count, length, kv, dim).permute(2, 0, 1, 3).contiguous()
            own_v = values.reshape(count, length, kv, dim).permute(2, 0, 1, 3).contiguous()
            rows = rows.reshape(kv, count, length * heads // kv, dim)
            out = TreeAttention.apply(rows, own_k, own_v, *root, mask, self._score_gradient)
            out = out.view(kv, count, length, heads // kv, dim).permute(1, 2, 0, 3, 4)
            parts.append(out.reshape(count * length, heads * dim))
        return torch.cat(parts)
