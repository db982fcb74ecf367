"""RMSNorm of the residual stream, with the addition before it: rows for matrices in floating point.

    x <- x + delta;   y = x / sqrt(mean(x^2) + eps) * weight

The addition and the norm read the same row: as one kernel it is read once. `int8_rows.py` is the same with
int8 rows behind it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.spec import OPTIONS, Shape, Spec, power_of_two

_ELEMENTS = 4096  # of a program: 32 fp32 registers a thread with 4 warps


@triton.jit
def stream_rows(x, delta, rows, width, ADD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program's rows of x in fp32, after x += delta (stored): (row, column, which of them are inside, their
    offsets, values)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None].to(tl.int64) * width + column[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if ADD:
        value += tl.load(delta + at, inside, 0.0).to(tl.float32)
        tl.store(x + at, value.to(x.dtype.element_ty), inside)
    return row, column, inside, at, value


@triton.jit
def normed(value, weight, column, width, eps):
    """RMSNorm in two factors: (value * weight, 1 / sqrt(mean(value^2) + eps) of each row)."""
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    return value * tl.load(weight + column, column < width, 0.0).to(tl.float32)[None, :], inverse


@triton.jit
def rms_norm_kernel(
    x,
    delta,
    weight,
    out,
    rows,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    _, column, inside, at, value = stream_rows(x, delta, rows, width, ADD, BLOCK_ROWS, BLOCK)
    value, inverse = normed(value, weight, column, width, eps)
    tl.store(out + at, (value * inverse[:, None]).to(out.dtype.element_ty), inside)


def spec(shape: Shape, *, add: bool) -> Spec:
    """As the scorer uses it: an fp32 stream, rows of `shape.dtype` out."""
    signature = {"x": "*fp32", "delta": f"*{shape.dtype}", "weight": "*fp32", "out": f"*{shape.dtype}"}
    signature |= {"rows": "i32", "width": "i32", "eps": "fp32"}
    name = f"rms_norm{'_add' if add else ''}"
    return Spec(name, rms_norm_kernel, signature, _constants(shape.hidden, add), frozenset({"width"}))


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, delta: Tensor | None = None) -> Tensor:
    """Normalise rows of x [T, H] into `out` [T, H], after x += delta (in place) where delta [T, H] is given.

    All contiguous; any floating dtypes, computed in fp32. weight [H].
    """
    rows, width = x.shape
    if out.shape != x.shape or not (x.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"rows {list(x.shape)} and {list(out.shape)} must be contiguous and alike")
    if delta is not None and (delta.shape != x.shape or not delta.is_contiguous()):
        raise ValueError(f"the addend is {list(delta.shape)}, expected {list(x.shape)}, contiguous")
    constants = _constants(width, delta is not None)
    grid = (triton.cdiv(rows, constants["BLOCK_ROWS"]),)
    delta = x if delta is None else delta  # an unused pointer
    rms_norm_kernel[grid](x, delta, weight, out, rows, width, eps, **constants, **OPTIONS)
    return out


def _constants(width: int, add: bool) -> dict[str, int]:
    block = power_of_two(width)
    return {"ADD": add, "BLOCK_ROWS": max(1, _ELEMENTS // block), "BLOCK": block}
