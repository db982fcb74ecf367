"""Quantise a trunk layer by layer, and tell how far it has moved from its parent.

Every projection is quantised looking at what it sees in the model quantised so far, and compared with what
the parent has there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aegis_edge.export import gptq
from aegis_edge.export.foreign import F16, Q8, block_int8, to_fp8
from aegis_edge.export.quantise import (
    GROUP,
    NIBBLE_MAX,
    Bf16,
    Int4,
    Int8,
    as_seen,
    int4_scales,
    int8_scale,
    round_int8,
)
from aegis_edge.export.stream import Stream
from aegis_edge.export.trunk import PROJECTIONS, Dense, Projection, Text, Trunk

SCHEMES = ("w8a8", "w4a8", "bf16", "f16", "q8_0", "fp8")
ROUNDINGS = ("gptq", "nearest")
ROTATED = ("w8a8", "w4a8")  # int8 activations a token want norms folded and the stream rotated
# Of w4a8: int4 in the MLP, three quarters of the weights. With attention's in int4 too, margins moved nearly
# twice as far (27 % of their deviation against 15 %).
_W4A8 = {"qkv": "w8a8", "o": "w8a8", "gate_up": "w4a8", "down": "w4a8"}
_DAMPING = 0.01
CENTRE_LEAST = 64  # slots of a question: their mean is then known to an eighth of one slot's deviation
# How much a token's error counts when a matrix is rounded. Every conversation attends to the policy, and to
# its first token most of all (an attention sink: without its weight, rounding it alone moves margins more
# than all other tokens together).
_SINK_WEIGHT, _ROOT_WEIGHT = 1000.0, 10.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Fidelity:
    """How far a guard moved from its parent on some text. slots: verdicts compared; flips: share whose sign
    changed; far_flips: those where the parent's probability lies outside 0.3 to 0.7; margin_error: mean
    |margin - parent's|; margin_std: of the parent's margins."""

    slots: int
    flips: float
    far_flips: int
    margin_error: float
    margin_std: float

    @property
    def relative_error(self) -> float:
        """Mean margin error as a share of the margins' standard deviation."""
        return self.margin_error / self.margin_std if self.margin_std else 0.0


def margins(logits: Tensor, pairs: Tensor) -> Tensor:
    """Unsafe minus safe at every slot: logits [S, R], pairs [S, 2] of row numbers (safe, unsafe) -> [S]."""
    return (logits.gather(1, pairs[:, 1:]) - logits.gather(1, pairs[:, :1])).squeeze(1)


def fidelity(parent: Tensor, guard: Tensor) -> Fidelity:
    """Compare two lists of margins [S] of the same slots."""
    flipped = (parent > 0) != (guard > 0)
    probability = torch.sigmoid(parent)
    is_far = (probability < 0.3) | (probability > 0.7)
    return Fidelity(
        slots=len(parent),
        flips=flipped.float().mean().item(),
        far_flips=int((flipped & is_far).sum()),
        margin_error=(guard - parent).abs().mean().item(),
        margin_std=parent.std(correction=0).item(),
    )


def quantise_trunk(
    trunk: Trunk,
    text: Text,
    scheme: str,
    report: Report = lambda name: None,
    *,
    rounding: str = "gptq",
    trained: bool = True,
    kept: Sequence[str] = (),
) -> tuple[Trunk, dict[str, float], Tensor, Tensor]:
    """Quantise every projection of `trunk` (folded and rotated already, unless bf16), calibrated on `text`.

    Returns the quantised trunk, each projection's relative error (|y - y_parent| / |y_parent| over the text,
    by "layers.i.name"), and the label logits of parent and quantised model at the text's slots. `report` is
    called after every projection. `rounding`: of w8a8, "gptq", or "nearest", which is quick and looks at no
    text. `trained`: the head's rows are its own, with a bias that can be moved, and
    not the LM head's; `kept`: projections that stay in bf16.
    """
    guard = replace(trunk, embed=trunk.embed.bfloat16().float(), layers=[])
    parent_run, guard_run = Stream(trunk, text), Stream(guard, text, rounded=True)
    weights = token_weights(text)
    errors: dict[str, float] = {}
    for i, layer in enumerate(trunk.layers):
        quantised = replace(layer)
        guard.layers.append(quantised)
        for name in PROJECTIONS:
            dense = getattr(layer, name)
            wanted, seen = parent_run.inputs(i, name), guard_run.inputs(i, name)
            own = "bf16" if name in kept else _W4A8[name] if scheme == "w4a8" else scheme
            if own == "w8a8" and rounding == "nearest":
                projection: Projection = round_int8(dense.weight, dense.bias)
            else:
                projection = quantise(dense, seen, text.fine, weights, own)
            setattr(quantised, name, projection)
            target, given = dense(wanted), projection(seen, text.fine)
            errors[f"layers.{i}.{name}"] = ((given - target).norm() / target.norm()).item()
            parent_run.apply(i, name, target)
            guard_run.apply(i, name, given)
            report(name)
    before, after = parent_run.logits(), guard_run.logits()
    if trained:
        shift = centre(before, after, text.pairs)
        guard.head_bias, after = guard.head_bias + shift, after + shift
    return guard, errors, before, after


def centre(parent: Tensor, guard: Tensor, pairs: Tensor) -> Tensor:
    """What to add to the head's bias, [R], so that each question's margins have the parent's mean (bias
    correction, arXiv 1906.04721): rounding moves all of a question's margins one way, which one number per
    question takes back."""
    shift = torch.zeros(guard.shape[1])
    for pair in pairs.unique(dim=0):
        mine = (pairs == pair).all(1)
        if mine.sum() < CENTRE_LEAST:  # the mean of a few texts is about these texts
            continue
        moved = margins(guard[mine], pairs[mine]) - margins(parent[mine], pairs[mine])
        shift[pair[0]] += moved.mean() / 2
        shift[pair[1]] -= moved.mean() / 2
    return shift


def token_weights(text: Text) -> Tensor:
    """How much each token counts in rounding, [T, 1]."""
    weights = torch.ones(len(text.ids), 1)
    weights[: text.root] = _ROOT_WEIGHT
    weights[0] = _SINK_WEIGHT
    return weights


def quantise(dense: Dense, seen: Tensor, fine: Tensor, weights: Tensor, scheme: str) -> Projection:
    """One projection in `scheme`; seen: its inputs in the model quantised so far, [T, K]."""
    if scheme == "bf16":
        return Bf16(dense.weight.bfloat16(), dense.bias)
    if scheme == "f16":
        return F16(dense.weight.half(), dense.bias)
    if scheme == "q8_0":
        return Q8(*block_int8(dense.weight), dense.bias)
    if scheme == "fp8":
        return to_fp8(dense.weight, dense.bias, seen)
    seen, weight = as_seen(seen, fine), dense.weight
    moments = gptq.second_moments(seen, seen * weights, _DAMPING)
    if scheme == "w8a8":
        scale = int8_scale(weight)
        return Int8(gptq.solve(weight, moments, lambda k: scale, 127), scale, dense.bias)
    group_scale, scale = int4_scales(weight, moments.diagonal())
    steps = (group_scale * scale[:, None]).T.contiguous()
    nibbles = gptq.solve(weight, moments, lambda k: steps[k // GROUP], NIBBLE_MAX)
    return Int4(nibbles, group_scale, scale, dense.bias)
