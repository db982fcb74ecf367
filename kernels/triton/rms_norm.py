"""RMSNorm of the residual stream, with the addition before it and, where asked for, int8 rows behind it.

    x <- x + delta;   y = x / sqrt(mean(x^2) + eps) * weight;   q = round(y / s), s = max|y| / 127

The addition and the norm read the same row: as one kernel it is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.spec import OPTIONS, Shape, Spec, power_of_two

_ELEMENTS = 4096  # of a program: 32 fp32 registers a thread with 4 warps


@triton.jit
def rms_norm_kernel(
    x,
    delta,
    weight,
    out,
    scales,
    rows,
    width,
    eps,
    ADD: tl.constexpr,
    QUANTISE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None].to(tl.int64) * width + column[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if ADD:
        value += tl.load(delta + at, inside, 0.0).to(tl.float32)
        tl.store(x + at, value.to(x.dtype.element_ty), inside)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    value *= inverse[:, None] * tl.load(weight + column, column < width, 0.0).to(tl.float32)[None, :]
    if QUANTISE:
        scale = tl.maximum(tl.max(tl.abs(value), 1), 1e-30) / 127.0
        tl.store(scales + row, scale, row < rows)
        # floor(x + 1/2) rounds to the nearest step; the row's largest is 127 steps but for rounding.
        value = tl.minimum(tl.floor(value / scale[:, None] + 0.5), 127.0)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def spec(shape: Shape, *, add: bool, quantise: bool) -> Spec:
    """As the scorer uses it: an fp32 stream, rows of `shape.dtype` or int8 out."""
    out = "i8" if quantise else shape.dtype
    signature = {"x": "*fp32", "delta": f"*{shape.dtype}", "weight": "*fp32", "out": f"*{out}"}
    signature |= {"scales": "*fp32", "rows": "i32", "width": "i32", "eps": "fp32"}
    name = f"rms_norm{'_add' if add else ''}{'_int8' if quantise else ''}"
    return Spec(
        name, rms_norm_kernel, signature, _constants(shape.hidden, add, quantise), frozenset({"width"})
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, delta: Tensor | None = None) -> Tensor:
    """Normalise rows of x [T, H] into `out` [T, H], after x += delta (in place) where delta [T, H] is given.

    All contiguous; any floating dtypes, computed in fp32. weight [H].
    """
    return _launch(x, weight, eps, out, None, delta)


def rms_norm_int8(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, scales: Tensor, delta: Tensor | None = None
) -> Tensor:
    """The same, rounded to `out` int8 [T, H] with a scale a row, `scales` float32 [T]: y ~ out * scale."""
    return _launch(x, weight, eps, out, scales, delta)


def _launch(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, scales: Tensor | None, delta: Tensor | None
) -> Tensor:
    rows, width = x.shape
    if out.shape != x.shape or not (x.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"rows {list(x.shape)} and {list(out.shape)} must be contiguous and alike")
    if delta is not None and (delta.shape != x.shape or not delta.is_contiguous()):
        raise ValueError(f"the addend is {list(delta.shape)}, expected {list(x.shape)}, contiguous")
    if scales is not None and (scales.shape != (rows,) or out.dtype != torch.int8):
        raise ValueError("int8 rows need a scale each")
    constants = _constants(width, delta is not None, scales is not None)
    grid = (triton.cdiv(rows, constants["BLOCK_ROWS"]),)
    delta, scales = x if delta is None else delta, x if scales is None else scales  # unused pointers
    rms_norm_kernel[grid](x, delta, weight, out, scales, rows, width, eps, **constants, **OPTIONS)
    return out


def _constants(width: int, add: bool, quantise: bool) -> dict[str, int]:
    block = power_of_two(width)
    rows = max(1, _ELEMENTS // block)
    return {"ADD": add, "QUANTISE": quantise, "BLOCK_ROWS": rows, "BLOCK": block}
