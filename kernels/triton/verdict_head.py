"""The verdict head: slot rows gathered, normalised, multiplied by a few rows, softmaxed; one launch a batch.

    h = x[slot] / sqrt(mean(x[slot]^2) + eps) * norm
    z = W h + b
    log p_i = z_i - log sum_{j in group(i)} exp z_j

Label mass needs the log-sum-exp over the whole vocabulary. A second kernel runs through the LM head's rows in
tiles and keeps a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867): no logit is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aegis_edge.triton.spec import OPTIONS, Shape, Spec, power_of_two

_ELEMENTS = 4096  # of the product: 32 fp32 registers a thread with 4 warps
_VOCABULARY = {"BLOCK_S": 16, "BLOCK_V": 32, "BLOCK_H": 32}
_RANGES = 128  # of the vocabulary, one a program: as many as an H100 has multiprocessors, roughly


@triton.jit
def verdict_head_kernel(
    hidden,
    slots,
    norm,
    weight,
    bias,
    groups,
    logits,
    log_probabilities,
    normed,
    width,
    rows,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    slot = tl.program_id(0)
    x = hidden + tl.load(slots + slot).to(tl.int64) * width
    column = tl.arange(0, BLOCK_H)
    squares = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, width, BLOCK_H):
        value = tl.load(x + start + column, start + column < width, 0.0).to(tl.float32)
        squares += value * value
    inverse = 1.0 / tl.sqrt(tl.sum(squares, 0) / width + eps)
    row = tl.arange(0, BLOCK_R)
    product = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    for start in range(0, width, BLOCK_H):
        inside = start + column < width
        value = tl.load(x + start + column, inside, 0.0).to(tl.float32)
        value *= inverse * tl.load(norm + start + column, inside, 0.0)
        tl.store(normed + slot.to(tl.int64) * width + start + column, value, inside)
        at = weight + row[:, None] * width + start + column[None, :]
        product += tl.load(at, (row < rows)[:, None] & inside[None, :], 0.0) * value[None, :]
    z = tl.sum(product, 1) + tl.load(bias + row, row < rows, 0.0)
    tl.store(logits + slot * rows + row, z, row < rows)
    # Few rows: who is in whose group is a matrix of BLOCK_R x BLOCK_R. Rows beyond the last are nobody's.
    group = tl.load(groups + row, row < rows, -1)
    other = tl.where((group[:, None] == group[None, :]) & (row < rows)[None, :], z[None, :], float("-inf"))
    top = tl.where(row < rows, tl.max(other, 1), 0.0)
    total = top + tl.log(tl.where(row < rows, tl.sum(tl.exp(other - top[:, None]), 1), 1.0))
    tl.store(log_probabilities + slot * rows + row, z - total, row < rows)


@triton.jit
def vocabulary_kernel(
    normed,
    vocabulary,
    partial,
    slots,
    width,
    tokens,
    span,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    slot = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    first = tl.program_id(1) * span
    last = tl.minimum(first + span, tokens)
    column = tl.arange(0, BLOCK_H)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    for start in range(first, last, BLOCK_V):
        token = start + tl.arange(0, BLOCK_V)
        z = tl.zeros([BLOCK_S, BLOCK_V], tl.float32)
        for at in range(0, width, BLOCK_H):
            inside = at + column < width
            h = tl.load(
                normed + slot[:, None] * width + at + column[None, :],
                (slot < slots)[:, None] & inside[None, :],
                0.0,
            )
            w = tl.load(
                vocabulary + token[None, :].to(tl.int64) * width + at + column[:, None],
                inside[:, None] & (token < last)[None, :],
                0.0,
            )
            z = tl.dot(h, w.to(tl.float32), z, input_precision="ieee")
        z = tl.where((token < last)[None, :], z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
        top = higher
    tl.store(partial + tl.program_id(1) * slots + slot, top + tl.log(total), slot < slots)


def specs(shape: Shape) -> list[Spec]:
    """As the scorer uses them: an fp32 stream, fp32 rows, and a bf16 vocabulary."""
    signature = {"hidden": "*fp32", "slots": "*i32", "norm": "*fp32", "weight": "*fp32", "bias": "*fp32"}
    signature |= {"groups": "*i32", "logits": "*fp32", "log_probabilities": "*fp32", "normed": "*fp32"}
    signature |= {"width": "i32", "rows": "i32", "eps": "fp32"}
    vocabulary = {"normed": "*fp32", "vocabulary": "*bf16", "partial": "*fp32", "slots": "i32"}
    vocabulary |= {"width": "i32", "tokens": "i32", "span": "i32"}
    return [
        Spec("verdict_head", verdict_head_kernel, signature, _constants(shape.rows), frozenset({"width"})),
        Spec("vocabulary", vocabulary_kernel, vocabulary, _VOCABULARY, frozenset({"width", "span"})),
    ]


def verdict_head(
    hidden: Tensor,
    slots: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    groups: Tensor,
    logits: Tensor,
    log_probabilities: Tensor,
    normed: Tensor,
) -> None:
    """Label logits and their log-softmax within groups at slots of `hidden` [T, H], before the final norm.

    slots int32 [S]; norm float32 [H]; weight float32 [R, H]; bias float32 [R]; groups int32 [R], any numbers
    from 0 on, equal for the labels of one question. Filled: logits and log_probabilities float32 [S, R], and
    normed float32 [S, H], the hidden states after the norm. All contiguous.
    """
    rows, width = weight.shape
    if len(slots) == 0:
        return
    if hidden.shape[1] != width or not (hidden.is_contiguous() and weight.is_contiguous()):
        raise ValueError(f"hidden states {list(hidden.shape)} do not fit a head {list(weight.shape)}")
    arrays = (hidden, slots, norm, weight, bias, groups, logits, log_probabilities, normed)
    verdict_head_kernel[(len(slots),)](*arrays, width, rows, eps, **_constants(rows), **OPTIONS)


def vocabulary_log_sum_exp(normed: Tensor, vocabulary: Tensor) -> Tensor:
    """log sum exp over all rows of `vocabulary` [V, H] for `normed` float32 [S, H]: float32 [S]."""
    slots, width = normed.shape
    tokens = len(vocabulary)
    block = _VOCABULARY["BLOCK_V"]
    span = triton.cdiv(triton.cdiv(tokens, _RANGES), block) * block
    ranges = triton.cdiv(tokens, span)
    partial = torch.empty((ranges, slots), dtype=torch.float32, device=normed.device)
    sizes = (slots, width, tokens, span)
    grid = (triton.cdiv(slots, _VOCABULARY["BLOCK_S"]), ranges)
    vocabulary_kernel[grid](normed, vocabulary, partial, *sizes, **_VOCABULARY, **OPTIONS)
    return torch.logsumexp(partial, 0)


def _constants(rows: int) -> dict[str, int]:
    block = power_of_two(rows, 4)
    return {"BLOCK_R": block, "BLOCK_H": max(64, min(512, _ELEMENTS // block))}
