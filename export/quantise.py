"""Weight formats of the artefact, and the projections that run them as the runtime does, simulated in fp32.

int8   w = w8 * scale[n], w8 in [-127, 127]
int4   w = q * group[n, g] * scale[n], q in [-7, 7], group an integer in 1..18: q * group is an int8 in
       [-126, 126], so both formats are the same int8 GEMM over all of K with one float scale a row
bf16   w rounded to bf16, inputs rounded to bf16, fp32 accumulation

Activations of the integer formats: int8 a token, symmetric, x8 = round_half_even(x * 127 / absmax), scale
absmax / 127. Tokens that count for more than one (`fine`: the policy's, and where a verdict is read) have a
second digit: what rounding left over, int8 in steps of scale / 254.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 32
GROUP_MAX = 18  # 7 * 18 = 126, the largest product that is an int8
NIBBLE_MAX = 7
LOW_STEPS = 254  # of the second digit in one of the first: kLowSteps in kernels/cpu/isa/kernels.h


@dataclass
class Int8:
    """weight int8 [N, K], scale f32 [N], bias f32 [N] or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor) -> Tensor:
        return _integer_gemm(x, fine, self.weight, self.scale, self.bias)


@dataclass
class Int4:
    """nibbles int8 [N, K] in -7..7, group_scale uint8 [N, K / 32] in 1..18, scale f32 [N], bias f32 [N] or
    None."""

    nibbles: Tensor
    group_scale: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor) -> Tensor:
        return _integer_gemm(x, fine, self.expanded(), self.scale, self.bias)

    def expanded(self) -> Tensor:
        """The int8 weights that the runtime's GEMM sees, [N, K]."""
        return self.nibbles * self.group_scale.to(torch.int8).repeat_interleave(GROUP, dim=1)

    def packed(self) -> Tensor:
        """Two nibbles a byte, even k in the low one, stored as value + 8: uint8 [N, K / 2]."""
        stored = (self.nibbles + 8).to(torch.uint8)
        return stored[:, 0::2] | (stored[:, 1::2] << 4)


@dataclass
class Bf16:
    """weight bf16 [N, K], bias f32 [N] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, fine: Tensor) -> Tensor:
        return functional.linear(x.bfloat16().float(), self.weight.float(), self.bias)


def _integer_gemm(x: Tensor, fine: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    # fp32 holds the sums of these products to within one part in 2^24: the runtime's int32 differs by
    # rounding only.
    y = functional.linear(as_seen(x, fine), weight.float()) * scale
    return y if bias is None else y + bias


def quantise_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 a token: (values as fp32 [T, K], scale [T, 1]); a row of zeros gets scale 0."""
    absmax = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(absmax > 0, 127.0 / absmax, 0.0)
    return (x * inverse).round(), absmax / 127.0


def as_seen(x: Tensor, fine: Tensor) -> Tensor:
    """The inputs that an integer projection multiplies: x [T, K] through int8 and back, with a second digit
    where `fine` (bool [T])."""
    x8, step = quantise_tokens(x)
    seen = x8 * step
    rest = x[fine] - seen[fine]
    finer = step[fine] / LOW_STEPS
    inverse = torch.where(finer > 0, 1.0 / finer, 0.0)
    seen[fine] += (rest * inverse).round().clamp(-127, 127) * finer
    return seen


def int8_scale(weight: Tensor) -> Tensor:
    """Per-row scale [N] of weight [N, K]: absmax / 127; rows of zeros get the smallest normal float, so that
    no scale is zero."""
    return (weight.abs().amax(1) / 127.0).clamp_min(torch.finfo(torch.float32).tiny)


def int4_scales(weight: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """(group_scale uint8 [N, K / 32], scale f32 [N]) of weight [N, K]; importance [K] weighs the squared
    error of each column.

    Each group's wanted scale is the one of a few shrunken absmax / 7 with the least weighted error; the row's
    scale maps the largest wanted one to 18, and the others round to an integer share of it.
    """
    groups = weight.reshape(len(weight), -1, GROUP)
    weights = importance.reshape(-1, GROUP)
    absmax = groups.abs().amax(2)
    best_scale, best_error = absmax / NIBBLE_MAX, torch.full_like(absmax, torch.inf)
    for shrink in torch.linspace(0.6, 1.0, 9):
        scale = (absmax * shrink / NIBBLE_MAX).clamp_min(1e-30)
        q = (groups / scale[..., None]).round().clamp(-NIBBLE_MAX, NIBBLE_MAX)
        error = ((groups - q * scale[..., None]).square() * weights).sum(2)
        is_better = error < best_error
        best_scale, best_error = (
            torch.where(is_better, scale, best_scale),
            torch.where(is_better, error, best_error),
        )
    scale = (best_scale.amax(1) / GROUP_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    group_scale = (best_scale / scale[:, None]).round().clamp(1, GROUP_MAX)
    return group_scale.to(torch.uint8), scale


def round_int8(weight: Tensor, bias: Tensor | None = None) -> Int8:
    """Round to nearest."""
    scale = int8_scale(weight)
    return Int8((weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale, bias)
