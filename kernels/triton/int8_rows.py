"""Rows as int8 digits, the inputs of `int8_gemm`: with the addition and RMSNorm before them, or a Hadamard
transform, or neither.

    x <- x + delta;   y = x / sqrt(mean(x^2) + eps) * weight;   q = round(y / s), s = max|y| / 127

Rows that count for many (`low_of` >= 0: the policy's, and where a verdict is read) have a second digit, what
rounding left over: r = round((y / s - q) * 254), of scale s / 254 (docs/artifact.md). Rounding is half to
even, by adding and taking away 1.5 * 2^23. A number that is not finite makes its row's scale NaN, and with it
all that is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.rms_norm import normed, stream_rows
from aegis_edge.triton.spec import OPTIONS, Shape, Spec, power_of_two

MAX_WIDTH = 8192  # of a row: 64 fp32 registers a thread with 4 warps; wider ones spill
_ELEMENTS = 2048  # of a program, where rows are narrower
_MAGIC = tl.constexpr(12582912.0)
_LEAST = tl.constexpr(2.0**-100)  # a row below this counts as zeros: its quotients would overflow
_STEPS = tl.constexpr(254.0)


@triton.jit
def hadamard(x, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Sylvester's transform of x [ROWS, SIZE] along its rows, not normalised.

    A level adds and subtracts neighbours, sums in the first half and differences in the second: which turns
    the index's bits by one, so that after all levels every bit was last once and stands where it was.
    """
    size: tl.constexpr = SIZE
    for _ in tl.static_range(SIZE.bit_length() - 1):
        a, b = tl.split(tl.reshape(x, [ROWS, size // 2, 2]))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), [ROWS, size])
    return x


@triton.jit
def int8_rows_kernel(
    x,
    delta,
    weight,
    low_of,
    values,
    scales,
    low,
    low_scales,
    rows,
    width,
    eps,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    HADAMARD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, column, inside, at, value = stream_rows(x, delta, rows, width, ADD, BLOCK_ROWS, BLOCK)
    factor = tl.full([BLOCK_ROWS], 1.0, tl.float32)  # cancels in y / max|y|: only the scale carries it
    if NORM:
        value, factor = normed(value, weight, column, width, eps)
    if HADAMARD > 0:
        blocks: tl.constexpr = BLOCK_ROWS * BLOCK // HADAMARD
        value = hadamard(tl.reshape(value, [blocks, HADAMARD]), blocks, HADAMARD)
        value = tl.reshape(value, [BLOCK_ROWS, BLOCK])
        factor *= HADAMARD**-0.5
    bound = tl.max(tl.abs(value), 1)
    poison = tl.sum(value * 0.0, 1)  # 0, or NaN: the maximum alone may drop a NaN
    scale = (bound / 127.0 + poison) * factor
    tl.store(scales + row, scale, row < rows)
    value *= tl.where(bound >= _LEAST, 127.0 / tl.maximum(bound, _LEAST), 0.0)[:, None]
    whole = (value + _MAGIC) - _MAGIC
    tl.store(values + at, whole.to(tl.int8), inside)
    fine = tl.load(low_of + row, row < rows, -1)
    rest = ((value - whole) * _STEPS + _MAGIC) - _MAGIC
    low_at = fine[:, None].to(tl.int64) * width + column[None, :]
    tl.store(low + low_at, rest.to(tl.int8), inside & (fine >= 0)[:, None])
    tl.store(low_scales + fine, scale / _STEPS, (row < rows) & (fine >= 0))


@dataclass(frozen=True, eq=False)
class Digits:
    """Rows [T, K] as values int8 * scales float32 [T], and at row t with low_of[t] = i >= 0 (int32 [T])
    + low[i] int8 * low_scales[i], low [L, K]."""

    values: Tensor
    scales: Tensor
    low: Tensor
    low_scales: Tensor
    low_of: Tensor


def int8_rows(
    x: Tensor,
    low_of: Tensor,
    fine: int,
    *,
    weight: Tensor | None = None,
    eps: float = 0.0,
    delta: Tensor | None = None,
    hadamard: int = 0,
) -> Digits:
    """The rows of x [T, K], any floating dtype, contiguous, as int8.

    low_of int32 [T]: the second digit's row of each row, below `fine`, or -1; weight float32 [K]: RMSNorm
    first, after x += delta [T, K] (in place) where delta is given; hadamard: block of the transform before
    rounding (a power of two that divides K), 0 for none.
    """
    rows, width = x.shape
    if width > MAX_WIDTH or not x.is_contiguous() or low_of.shape != (rows,):
        raise ValueError(f"rows {list(x.shape)} must be contiguous, up to {MAX_WIDTH} wide, a low_of each")
    if delta is not None and (delta.shape != x.shape or not delta.is_contiguous() or weight is None):
        raise ValueError(f"the addend is {list(delta.shape)}, expected {list(x.shape)}, contiguous, normed")
    if hadamard & (hadamard - 1) or (hadamard and width % hadamard):
        raise ValueError(f"Hadamard blocks of {hadamard} do not divide rows of {width}")

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    byte, single = torch.int8, torch.float32
    made = Digits(
        empty(rows, width, dtype=byte),
        empty(rows, dtype=single),
        empty(fine, width, dtype=byte),
        empty(fine, dtype=single),
        low_of,
    )
    constants = _constants(width, weight is not None, delta is not None, hadamard)
    others = (x if delta is None else delta, x if weight is None else weight)  # unused pointers
    digits = (low_of, made.values, made.scales, made.low, made.low_scales)
    grid = (triton.cdiv(rows, constants["BLOCK_ROWS"]),)
    int8_rows_kernel[grid](x, *others, *digits, rows, width, eps, **constants, **OPTIONS)
    return made


def specs(shape: Shape) -> list[Spec]:
    """As the scorer uses them: an fp32 stream and fp32 rows between the products."""
    signature = dict.fromkeys(("x", "delta", "weight"), "*fp32") | {"low_of": "*i32", "values": "*i8"}
    signature |= {"scales": "*fp32", "low": "*i8", "low_scales": "*fp32"}
    signature |= {"rows": "i32", "width": "i32", "eps": "fp32"}
    kinds = {
        "int8_norm": (shape.hidden, True, False, 0),
        "int8_norm_add": (shape.hidden, True, True, 0),
        "int8_rows": (shape.heads * shape.head_dim, False, False, 0),
        "int8_hadamard": (shape.intermediate, False, False, shape.hadamard),
    }
    return [
        Spec(name, int8_rows_kernel, signature, _constants(*kind), frozenset({"width"}))
        for name, kind in kinds.items()
        if kind[0] <= MAX_WIDTH
    ]


def _constants(width: int, norm: bool, add: bool, hadamard: int) -> dict[str, int]:
    block = power_of_two(width)
    rows = max(1, _ELEMENTS // block)
    return {"NORM": norm, "ADD": add, "HADAMARD": hadamard, "BLOCK_ROWS": rows, "BLOCK": block}
