"""Rotations that spread outliers before quantisation, folded into the weights so that they cost nothing at
run time.

RMSNorm without a weight commutes with every orthogonal matrix, so once the norm weights are folded into the
matrices behind them, the residual stream may live in any basis: a random one has no outlier channels (QuaRot,
arXiv 2404.00456). V and the attention output agree on a basis a head. Only the input of `down` lies behind a
non-linearity: its Hadamard transform runs at run time, and its inverse is folded into `down` here.

A norm after attention or MLP (Gemma 2 and 3) has a weight a channel between a matrix and the residual stream,
which no rotation of the stream passes: folded into the matrix, the norm would no longer see what it divides
by. There the stream stays as it is, and the inputs of qkv and gate_up, which are the stream again up to a
factor a token, go through a Hadamard transform in blocks at run time, as those of `down` do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from aegis_edge.export.trunk import Dense, Trunk, hadamard


def fold_norms(trunk: Trunk) -> None:
    """Multiply every norm weight into the columns of the matrices behind it; logits do not change.

    Where the stream is not rotated, the weights of its norms stay: Gemma 3's are near zero just where its
    stream is hundreds of times larger than elsewhere, and int8 inputs without them would hold little else.
    """
    for layer in [] if trunk.features.out_norms else trunk.layers:
        for projection, norm in ((layer.qkv, layer.input_norm), (layer.gate_up, layer.post_norm)):
            if norm is not None:
                assert isinstance(projection, Dense)
                projection.weight *= norm
        layer.input_norm = layer.post_norm = None
    if trunk.final_norm is not None:
        trunk.head_weight *= trunk.final_norm
        if trunk.unembed is not None:
            trunk.unembed *= trunk.final_norm[:, None]
        if trunk.lm_head is not None:
            trunk.lm_head *= trunk.final_norm
        trunk.final_norm = None


def rotate(trunk: Trunk, seed: int, online: bool = True) -> None:
    """Rotate a trunk whose norms are folded; label logits stay the same up to fp32 rounding. online: with the
    Hadamard transform before `down`, for engines that run it."""
    generator = torch.Generator().manual_seed(seed)
    dims = trunk.dims
    if trunk.features.out_norms:
        basis = None
        trunk.features = replace(trunk.features, input_block=hadamard_block(dims.hidden) if online else 0)
    else:
        basis = random_orthogonal(dims.hidden, generator)
        trunk.embed = trunk.embed @ basis
        trunk.head_weight = trunk.head_weight @ basis
        if trunk.unembed is not None:
            trunk.unembed = basis.T @ trunk.unembed @ basis
        if trunk.lm_head is not None:
            trunk.lm_head = trunk.lm_head @ basis
    trunk.hadamard_block = hadamard_block(dims.intermediate) if online else 0
    values = dims.kv_heads * dims.head_dim
    group = dims.heads // dims.kv_heads
    for layer in trunk.layers:
        qkv, o, gate_up, down = layer.qkv, layer.o, layer.gate_up, layer.down
        assert (
            isinstance(qkv, Dense)
            and isinstance(o, Dense)
            and isinstance(gate_up, Dense)
            and isinstance(down, Dense)
        )
        turns = torch.stack([random_orthogonal(dims.head_dim, generator) for _ in range(dims.kv_heads)])
        v = qkv.weight[-values:].reshape(dims.kv_heads, dims.head_dim, -1)
        qkv.weight[-values:] = (turns.transpose(1, 2) @ v).reshape(values, -1)
        if qkv.bias is not None:
            bias = qkv.bias[-values:].reshape(dims.kv_heads, dims.head_dim, 1)
            qkv.bias[-values:] = (turns.transpose(1, 2) @ bias).reshape(values)
        heads = o.weight.reshape(dims.hidden, dims.heads, dims.head_dim).transpose(0, 1)
        heads = heads @ turns.repeat_interleave(group, dim=0)
        o.weight = heads.transpose(0, 1).reshape(dims.hidden, -1)
        down.weight = hadamard(down.weight, trunk.hadamard_block)
        for reads in (qkv, gate_up):
            block = trunk.features.input_block
            reads.weight = hadamard(reads.weight, block) if basis is None else reads.weight @ basis
        if basis is not None:
            o.weight, down.weight = basis.T @ o.weight, basis.T @ down.weight


def random_orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, fp32 [n, n]: QR in fp64 of a Gaussian matrix, signs fixed so that it is
    Haar-distributed."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()


def hadamard_block(intermediate: int) -> int:
    """Largest power of two up to 512 that divides the MLP width; 0 below 16, which spreads too little."""
    block = min(intermediate & -intermediate, 512)
    return block if block >= 16 else 0
