"""Rotary position embedding of queries and keys, in place.

A head's halves (a, b) become (a cos - b sin, b cos + a sin), with the angle position * frequency (Su et al.,
arXiv 2104.09864, in the half-split order of Llama). Cosines come from a table: computing them in the kernel
would reduce large angles in registers that it does not have.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.spec import OPTIONS, Shape, Spec, power_of_two

_BLOCK_T = 16


@triton.jit
def rope_kernel(
    x, positions, cosine, sine, tokens, stride, half, BLOCK_T: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    dim = tl.arange(0, BLOCK_HALF)
    inside = (token < tokens)[:, None] & (dim < half)[None, :]
    position = tl.load(positions + token, token < tokens, 0)
    angle = position[:, None].to(tl.int64) * half + dim[None, :]
    cos = tl.load(cosine + angle, inside, 0.0)
    sin = tl.load(sine + angle, inside, 0.0)
    at = x + token[:, None].to(tl.int64) * stride + tl.program_id(1) * 2 * half + dim[None, :]
    a = tl.load(at, inside, 0.0).to(tl.float32)
    b = tl.load(at + half, inside, 0.0).to(tl.float32)
    tl.store(at, (a * cos - b * sin).to(x.dtype.element_ty), inside)
    tl.store(at + half, (b * cos + a * sin).to(x.dtype.element_ty), inside)


def spec(shape: Shape) -> Spec:
    """As the scorer uses it: queries and keys stand side by side in rows of `shape.dtype`."""
    signature = {"x": f"*{shape.dtype}", "positions": "*i32", "cosine": "*fp32", "sine": "*fp32"}
    signature |= {"tokens": "i32", "stride": "i32", "half": "i32"}
    return Spec("rope", rope_kernel, signature, _constants(shape.head_dim), frozenset({"stride", "half"}))


def rope(x: Tensor, positions: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> Tensor:
    """Rotate the first `heads` heads of every row of x [T, any], in place.

    positions int32 [T]; cosine and sine float32 [context, head_dim / 2].
    """
    half = cosine.shape[1]
    if x.stride(1) != 1 or heads * 2 * half > x.shape[1] or len(positions) != len(x):
        raise ValueError(f"{heads} heads of {2 * half} do not fit rows {list(x.shape)}")
    grid = (triton.cdiv(len(x), _BLOCK_T), heads)
    arrays = (x, positions, cosine, sine)
    rope_kernel[grid](*arrays, len(x), x.stride(0), half, **_constants(2 * half), **OPTIONS)
    return x


def _constants(head_dim: int) -> dict[str, int]:
    return {"BLOCK_T": _BLOCK_T, "BLOCK_HALF": power_of_two(head_dim // 2)}
