"""What a kernel is compiled with: one description for the launchers and for the compiler ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPTIONS = {"num_warps": 4, "num_stages": 2}  # of every kernel, launched or compiled ahead


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that kernels are compiled for.

    hadamard  block of the transform before `down`, 0 for none
    bias      whether queries, keys and values have one
    dtype     of what is not int8: "fp32", "fp16" or "bf16"
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    hadamard: int
    bias: bool
    rows: int
    dtype: str

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Spec:
    """One compiled kernel.

    signature  argument -> Triton's type of it ("*fp16": a pointer, "i32"), in order, constants left out
    constants  values fixed at compile time
    multiples  integers that are multiples of 16, as all pointers are: then 16 bytes are loaded at a time
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, int]
    multiples: frozenset[str] = frozenset()


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is not below `n` or `least`: blocks in Triton have such sizes."""
    return max(least, 1 << (n - 1).bit_length())
