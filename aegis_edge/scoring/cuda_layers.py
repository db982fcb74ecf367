"""A decoder layer's matrices on the GPU: in the artefact's own int8, or in floating point.

Both do the step before a product with it: RMSNorm and rounding to int8 are one kernel, and so are the product
and SiLU(gate) * up. int8 rows, sums and second digits are those of the compiled runtime (docs/artifact.md);
between two int8 products rows stay in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from aegis_edge.scoring.dequantise import int8_of
from aegis_edge.triton.int8_gemm import int8_gemm
from aegis_edge.triton.int8_rows import MAX_WIDTH, int8_rows
from aegis_edge.triton.rms_norm import rms_norm

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact

PARTS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True, eq=False)
class Fine:
    """The rows of a pass that have a second digit: low_of int32 [T], a number below `count`, or -1."""

    low_of: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class Dense:
    """weight [out, in] of any floating dtype, multiplied by PyTorch; bias [out] of that dtype or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def takes(self) -> torch.dtype:
        """What rows are best given in."""
        return self.weight.dtype

    def __call__(self, rows: Tensor, fine: Fine) -> Tensor:
        """rows [T, in] -> [T, out]."""
        return linear(rows.to(self.takes), self.weight, self.bias)

    def normed(self, x: Tensor, norm: Tensor, eps: float, delta: Tensor | None, fine: Fine) -> Tensor:
        """x += delta [T, in] (in place) where there is one, RMSNorm by norm [in], then the product."""
        rows = torch.empty(x.shape, dtype=self.takes, device=x.device)
        return self(rms_norm(x, norm, eps, rows, delta), fine)

    def gated(self, x: Tensor, norm: Tensor, eps: float, delta: Tensor | None, fine: Fine) -> Tensor:
        """The same with gate over up in one matrix: SiLU(gate) * up, [T, out / 2]."""
        gate, up = self.normed(x, norm, eps, delta, fine).chunk(2, dim=-1)
        return silu(gate) * up


@dataclass(frozen=True, eq=False)
class Int8:
    """weight int8 [out, in], scale float32 [out], bias float32 [out] or None; hadamard: block of the
    transform of its input, 0 for none; gives: dtype of what comes out."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    hadamard: int
    gives: torch.dtype
    takes = torch.float32

    def __call__(self, rows: Tensor, fine: Fine) -> Tensor:
        """See Dense."""
        digits = int8_rows(rows.contiguous(), fine.low_of, fine.count, hadamard=self.hadamard)
        return int8_gemm(digits, self.weight, self.scale, bias=self.bias, dtype=self.gives)

    def normed(self, x: Tensor, norm: Tensor, eps: float, delta: Tensor | None, fine: Fine) -> Tensor:
        """See Dense."""
        digits = int8_rows(x, fine.low_of, fine.count, weight=norm, eps=eps, delta=delta)
        return int8_gemm(digits, self.weight, self.scale, bias=self.bias, dtype=self.gives)

    def gated(self, x: Tensor, norm: Tensor, eps: float, delta: Tensor | None, fine: Fine) -> Tensor:
        """See Dense."""
        digits = int8_rows(x, fine.low_of, fine.count, weight=norm, eps=eps, delta=delta)
        return int8_gemm(digits, self.weight, self.scale, bias=self.bias, silu=True)


@dataclass(frozen=True, eq=False)
class Layer:
    """Norms float32 [hidden]; qkv: rows of Q, K, V; gate_up: rows of gate, up."""

    input_norm: Tensor
    qkv: Dense | Int8
    o: Dense | Int8
    post_norm: Tensor
    gate_up: Dense | Int8
    down: Dense | Int8


Put = Callable[..., Tensor]  # (tensor, dtype=float32) -> the tensor on the device, contiguous


def dense_layer(layer: Any, put: Put, dtype: torch.dtype) -> Layer:
    """A transformers layer in `dtype`."""
    attention, mlp = layer.self_attn, layer.mlp
    heads = (attention.q_proj, attention.k_proj, attention.v_proj)
    biased = heads[0].bias is not None
    return Layer(
        put(layer.input_layernorm.weight),
        Dense(
            put(torch.cat([part.weight for part in heads]), dtype),
            put(torch.cat([part.bias for part in heads]), dtype) if biased else None,
        ),
        Dense(put(attention.o_proj.weight, dtype), None),
        put(layer.post_attention_layernorm.weight),
        Dense(put(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), dtype), None),
        Dense(put(mlp.down_proj.weight, dtype), None),
    )


def int8_matrices(artifact: Artifact, layer: int, put: Put, dtype: torch.dtype) -> Mapping[str, Int8]:
    """By part, those matrices of a layer that the artefact has as integers: int8 as they are stored, int4
    multiplied out to int8. Those in bf16, and those with more than MAX_WIDTH inputs, stay with `dense_layer`;
    queries, keys and values come out in `dtype`."""
    made = {}
    block = artifact.manifest["quantization"]["hadamard_block"]
    for part in PARTS:
        name = f"layers.{layer}.{part}"
        found = int8_of(artifact, name)
        if found is None or found[0].shape[1] > MAX_WIDTH:
            continue
        has_bias = part == "qkv" and f"{name}.bias" in artifact.tensor_names()
        made[part] = Int8(
            put(torch.from_numpy(found[0]), torch.int8),
            put(torch.from_numpy(found[1])),
            put(torch.from_numpy(artifact.tensor(f"{name}.bias"))) if has_bias else None,
            block if part == "down" else 0,
            dtype if part == "qkv" else torch.float32,
        )
    return made
