"""Attention of packed, ragged segments over a token tree.

Every node's keys are read for all queries at or below it together, so what siblings share is read once for
them (a tile of queries at a time) and not once a sibling. Each such part leaves a softmax over its keys
alone: an output and a log-sum-exp, which a second kernel merges along the path (Juravsky et al., Hydragen,
arXiv 2402.05099):

    out = sum_l exp(e_l - e) out_l,   e = log sum_l exp e_l

The query heads that share a key head are rows of one tile. Ragged parts are begin and end offsets from a
table (`tree_plan.py`); no pointer is loaded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.spec import OPTIONS, Shape, Spec, power_of_two

_BLOCK_M = 64  # rows of a tile: tokens times query heads of a key head
_BLOCK_N = 64  # keys at a time, fewer where heads are wide
_MERGED = 2048  # elements of a program that merges


@triton.jit
def part_kernel(
    q,
    k,
    v,
    tiles,
    part,
    part_lse,
    tokens,
    base,
    q_stride,
    k_stride,
    v_stride,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * 5
    query_begin, query_end = tl.load(tile), tl.load(tile + 1)
    key_begin, key_end = tl.load(tile + 2), tl.load(tile + 3)
    level = tl.load(tile + 4)
    kv_head = tl.program_id(1)
    heads = tl.num_programs(1) * GROUP

    row = tl.arange(0, BLOCK_M)
    token = query_begin + row // GROUP
    head = kv_head * GROUP + row % GROUP
    live = token < query_end
    dim = tl.arange(0, BLOCK_D)
    used = dim < HEAD_DIM
    query = tl.load(
        q + token[:, None].to(tl.int64) * q_stride + head[:, None] * HEAD_DIM + dim[None, :],
        live[:, None] & used[None, :],
        0.0,
    )
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(key_begin, key_end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        inside = key < key_end
        keys = tl.load(
            k + key[None, :].to(tl.int64) * k_stride + kv_head * HEAD_DIM + dim[:, None],
            used[:, None] & inside[None, :],
            0.0,
        )
        score = tl.dot(query, keys, input_precision="ieee") * scale
        seen = inside[None, :] & (key[None, :] <= base + token[:, None])
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # A row that has seen nothing yet has no maximum: 0 stands in for it, so that exp gives 0 and not NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(score - shift[:, None])
        fade = tl.exp(top - shift)
        total = total * fade + tl.sum(weight, 1)
        values = tl.load(
            v + key[:, None].to(tl.int64) * v_stride + kv_head * HEAD_DIM + dim[None, :],
            inside[:, None] & used[None, :],
            0.0,
        )
        out = tl.dot(weight.to(values.dtype), values, out * fade[:, None], input_precision="ieee")
        top = higher
    some = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, top + tl.log(some), float("-inf"))
    at = (level.to(tl.int64) * tokens + token) * heads + head
    tl.store(part_lse + at, lse, live)
    tl.store(part + at[:, None] * HEAD_DIM + dim[None, :], out / some[:, None], live[:, None] & used[None, :])


@triton.jit
def merge_kernel(
    part,
    part_lse,
    levels,
    out,
    rows,
    heads,
    deepest,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    dim = tl.arange(0, BLOCK_D)
    count = tl.load(levels + row // heads, row < rows, 0)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    value = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for level in range(0, deepest):
        here = level < count  # false for rows beyond the last, whose count is 0
        at = row.to(tl.int64) + level * rows
        lse = tl.load(part_lse + at, here, float("-inf"))
        one = tl.load(
            part + at[:, None] * HEAD_DIM + dim[None, :], here[:, None] & (dim < HEAD_DIM)[None, :], 0.0
        )
        higher = tl.maximum(top, lse)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        fade, weight = tl.exp(top - shift), tl.exp(lse - shift)
        total = total * fade + weight
        value = value * fade[:, None] + one * weight[:, None]
        top = higher
    value = value / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + row[:, None].to(tl.int64) * HEAD_DIM + dim[None, :],
        value.to(out.dtype.element_ty),
        (row < rows)[:, None] & (dim < HEAD_DIM)[None, :],
    )


def queries_a_tile(group: int) -> int:
    """Tokens of a tile where `group` query heads share a key head."""
    return _BLOCK_M // group


def specs(shape: Shape) -> list[Spec]:
    """As the scorer uses them."""
    pointer = f"*{shape.dtype}"
    part = {"q": pointer, "k": pointer, "v": pointer, "tiles": "*i32", "part": "*fp32", "part_lse": "*fp32"}
    part |= dict.fromkeys(("tokens", "base", "q_stride", "k_stride", "v_stride"), "i32")
    part |= {"scale": "fp32"}
    strides = frozenset({"q_stride", "k_stride", "v_stride"})
    merge = {"part": "*fp32", "part_lse": "*fp32", "levels": "*i32", "out": pointer}
    merge |= {"rows": "i32", "heads": "i32", "deepest": "i32"}
    return [
        Spec("tree_attention", part_kernel, part, _part_constants(shape.group, shape.head_dim), strides),
        Spec("tree_attention_merge", merge_kernel, merge, _merge_constants(shape.head_dim)),
    ]


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Tensor,
    levels: Tensor,
    deepest: int,
    base: int,
    heads: int,
    kv_heads: int,
    out: Tensor,
) -> Tensor:
    """Attention of T packed queries over cached keys and values, into `out` [T, heads * d].

    q [T, >= heads * d], k and v [rows, >= kv_heads * d], last dimension contiguous, one dtype; tiles int32
    [n, 5], levels int32 [T] and base as `tree_plan.plan` gives them, for `queries_a_tile(heads / kv_heads)`;
    deepest: the largest of levels. A query that sees no key gets zeros. Softmax scale 1 / sqrt(d).
    """
    tokens, width = out.shape
    head_dim, group = width // heads, heads // kv_heads
    if heads % kv_heads or group > _BLOCK_M or head_dim * heads != width:
        raise ValueError(f"{heads} heads over {kv_heads} of {head_dim} in {width} columns")
    if not (q.dtype == k.dtype == v.dtype) or len(q) != tokens or not out.is_contiguous():
        raise ValueError(
            "queries, keys and values must be of one dtype, the output contiguous, a row a query"
        )
    part = torch.empty((deepest, tokens, width), dtype=torch.float32, device=q.device)
    lse = torch.empty((deepest, tokens, heads), dtype=torch.float32, device=q.device)
    strides = (q.stride(0), k.stride(0), v.stride(0))
    sizes = (tokens, base, *strides, head_dim**-0.5)
    constants = _part_constants(group, head_dim)
    part_kernel[(len(tiles), kv_heads)](q, k, v, tiles, part, lse, *sizes, **constants, **OPTIONS)
    merge = _merge_constants(head_dim)
    rows = tokens * heads
    grid = (triton.cdiv(rows, merge["BLOCK_R"]),)
    merge_kernel[grid](part, lse, levels, out, rows, heads, deepest, **merge, **OPTIONS)
    return out


def _part_constants(group: int, head_dim: int) -> dict[str, int]:
    block = power_of_two(head_dim)
    sizes = {"GROUP": group, "HEAD_DIM": head_dim, "BLOCK_M": _BLOCK_M}
    return sizes | {"BLOCK_N": _BLOCK_N // max(1, min(block, 256) // 64), "BLOCK_D": block}


def _merge_constants(head_dim: int) -> dict[str, int]:
    block = power_of_two(head_dim)
    return {"HEAD_DIM": head_dim, "BLOCK_R": max(1, _MERGED // block), "BLOCK_D": block}
