"""Weight formats of other engines, and the projections as those engines run them, simulated in fp32.

f16    w rounded to f16, inputs rounded to f16 (llama.cpp on a CPU)
q8_0   blocks of 32 along a row: w = w8 * scale[n, g], w8 in [-127, 127], the scale in f16; inputs the same
(llama.cpp) fp8    E4M3: w = w8 * scale, x = x8 * input_scale, one scale a matrix, that of the inputs fixed
beforehand (ModelOpt's FP8)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aegis_edge.errors import ExportError

BLOCK = 32
E4M3_MAX = 448.0


@dataclass
class F16:
    """weight f16 [N, K], bias f32 [N] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor) -> Tensor:
        return functional.linear(x.half().float(), self.weight.float(), self.bias)


@dataclass
class Q8:
    """weight int8 [N, K], scale f16 [N, K / 32], bias f32 [N] or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor) -> Tensor:
        return functional.linear(_unblock(*block_int8(x)), _unblock(self.weight, self.scale), self.bias)


@dataclass
class Fp8:
    """weight float8_e4m3fn [N, K], scale and input_scale f32 scalars, bias f32 [N] or None."""

    weight: Tensor
    scale: Tensor
    input_scale: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor) -> Tensor:
        seen = _e4m3(x, self.input_scale).float() * self.input_scale
        return functional.linear(seen, self.weight.float() * self.scale, self.bias)


def block_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] in blocks of 32: (int8 [..., K], f16 scale [..., K / 32]). Raises ExportError where K is no
    multiple of 32."""
    if x.shape[-1] % BLOCK:
        raise ExportError(f"q8_0 has blocks of {BLOCK}, which do not divide a width of {x.shape[-1]}")
    blocks = x.unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1) / 127.0
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    return (blocks * inverse[..., None]).round().to(torch.int8).flatten(-2), scale.half()


def to_fp8(weight: Tensor, bias: Tensor | None, seen: Tensor) -> Fp8:
    """Round weight [N, K] to E4M3; the inputs' scale from the largest one in seen [T, K]."""
    scale, input_scale = (x.abs().amax().clamp_min(1e-12) / E4M3_MAX for x in (weight, seen))
    return Fp8(_e4m3(weight, scale), scale, input_scale, bias)


def _unblock(values: Tensor, scale: Tensor) -> Tensor:
    return (values.float().unflatten(-1, (-1, BLOCK)) * scale.float()[..., None]).flatten(-2)


def _e4m3(x: Tensor, scale: Tensor) -> Tensor:
    # The type has no infinity: without the clamp what is too large becomes NaN.
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
