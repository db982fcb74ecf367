"""int8 rows by the artefact's own int8 weights: int32 sums over all of K, then one float epilogue.

    y[t, n] = (sum_k a[t, k] b[n, k]) * b_scale[n] * a_scale[t]  + low[t, n] + bias[n]

`low` is the same product of the second digits (`int8_rows.py`), made beforehand for the few rows that have
them. Where gate and up stand in one matrix, a program multiplies both and writes SiLU(gate) * up. K up to
133,152 fits: K * 127 * 127 < 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.int8_rows import MAX_WIDTH, Digits
from aegis_edge.triton.spec import OPTIONS, Shape, Spec

_BLOCKS = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}


@triton.jit
def int8_gemm_kernel(
    a,
    a_scale,
    b,
    b_scale,
    bias,
    low,
    low_of,
    out,
    rows,
    columns,
    depth,
    SILU: tl.constexpr,
    BIAS: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    live, used = row < rows, column < columns
    step = tl.arange(0, BLOCK_K)
    a_at = a + row[:, None].to(tl.int64) * depth + step[None, :]
    b_at = b + column[None, :].to(tl.int64) * depth + step[:, None]
    second = columns.to(tl.int64) * depth  # from gate's rows to up's
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    other = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, depth, BLOCK_K):
        within = start + step < depth
        left = tl.load(a_at + start, live[:, None] & within[None, :], 0)
        total = tl.dot(left, tl.load(b_at + start, within[:, None] & used[None, :], 0), total)
        if SILU:
            other = tl.dot(left, tl.load(b_at + start + second, within[:, None] & used[None, :], 0), other)
    scale = tl.load(a_scale + row, live, 0.0)
    value = total.to(tl.float32) * tl.load(b_scale + column, used, 0.0)[None, :] * scale[:, None]
    width = columns * 2 if SILU else columns
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    if LOW:
        fine = tl.load(low_of + row, live, -1)
        low_at = low + fine[:, None].to(tl.int64) * width + column[None, :]
        has = (fine >= 0)[:, None] & used[None, :]
        value += tl.load(low_at, has, 0.0)
    if BIAS:
        value += tl.load(bias + column, used, 0.0)[None, :]
    if SILU:
        up = other.to(tl.float32) * tl.load(b_scale + columns + column, used, 0.0)[None, :] * scale[:, None]
        if LOW:
            up += tl.load(low_at + columns, has, 0.0)
        if BIAS:
            up += tl.load(bias + columns + column, used, 0.0)[None, :]
        value = value / (1.0 + tl.exp(-value)) * up
    tl.store(out + at, value.to(out.dtype.element_ty), live[:, None] & used[None, :])


def int8_gemm(
    rows: Digits,
    weight: Tensor,
    scale: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows [T, K] by weight int8 [N, K] with scale float32 [N] and bias float32 [N]: [T, N] of `dtype`.

    silu: the weight's halves are gate and up, and SiLU(gate) * up [T, N / 2] comes out.
    """
    columns, depth = weight.shape
    if rows.values.shape[1] != depth or scale.shape != (columns,) or not weight.is_contiguous():
        raise ValueError(f"rows {list(rows.values.shape)} do not fit a weight {list(weight.shape)}")
    if weight.dtype != torch.int8 or (bias is not None and bias.shape != (columns,)):
        raise ValueError(f"the weight is {weight.dtype}, and its bias one number a row")
    low = rows.low_scales
    if len(rows.low):
        low = torch.empty((len(rows.low), columns), dtype=torch.float32, device=weight.device)
        _launch(rows.low, rows.low_scales, weight, scale, None, None, rows.low_of, low, False)
    out = torch.empty(
        (len(rows.values), columns // 2 if silu else columns), dtype=dtype, device=weight.device
    )
    given = low if len(rows.low) else None
    _launch(rows.values, rows.scales, weight, scale, bias, given, rows.low_of, out, silu)
    return out


def _launch(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    low: Tensor | None,
    low_of: Tensor,
    out: Tensor,
    silu: bool,
) -> None:
    rows, columns = out.shape
    grid = (triton.cdiv(rows, _BLOCKS["BLOCK_M"]), triton.cdiv(columns, _BLOCKS["BLOCK_N"]))
    unused = (b_scale if bias is None else bias, b_scale if low is None else low)
    arrays = (a, a_scale, b, b_scale, *unused, low_of, out)
    flags = {"SILU": silu, "BIAS": bias is not None, "LOW": low is not None}
    int8_gemm_kernel[grid](*arrays, rows, columns, a.shape[1], **flags, **_BLOCKS, **OPTIONS)


def specs(shape: Shape) -> list[Spec]:
    """As the scorer uses them: queries, keys and values in `shape.dtype`, everything else in fp32.

    For a pass that reads nothing but the policy all rows have second digits, for any other its slots: the
    variants without are for second digits themselves.
    """
    if max(shape.hidden, shape.heads * shape.head_dim, shape.intermediate) > MAX_WIDTH:
        return []
    signature = {"a": "*i8", "a_scale": "*fp32", "b": "*i8", "b_scale": "*fp32", "bias": "*fp32"}
    signature |= {"low": "*fp32", "low_of": "*i32", "out": "*fp32"}
    signature |= dict.fromkeys(("rows", "columns", "depth"), "i32")
    multiples = frozenset({"columns", "depth"})

    def one(name: str, out: str, silu: bool, bias: bool, low: bool) -> Spec:
        flags = {"SILU": silu, "BIAS": bias, "LOW": low}
        return Spec(name, int8_gemm_kernel, {**signature, "out": out}, flags | _BLOCKS, multiples)

    return [
        one("int8_gemm", "*fp32", False, False, True),
        one("int8_gemm_qkv", f"*{shape.dtype}", False, shape.bias, True),
        one("int8_gemm_silu", "*fp32", True, False, True),
        one("int8_gemm_low", "*fp32", False, False, False),
    ]
