"""Triton's kernels in its interpreter, with memory that nobody wrote as NaN: import this before any of them.

Triton decides when it is imported whether functions are interpreted; `conftest.py` therefore sets
TRITON_INTERPRET first. Tests that compile run in processes of their own, without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import TensorHandle, interpreter_builder

from aegis_edge.triton import int8_gemm, int8_rows, rms_norm, rope, tree_attention


@contextmanager
def poisoned() -> Iterator[None]:
    """What `torch.empty` gives is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)  # with torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the largest difference is within `tolerance` of the largest expected value; NaN is not."""
    scale = expected.double().abs().max().clamp_min(1e-30)
    return bool((found.double() - expected.double()).abs().max() <= tolerance * scale)


def compiled(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process whose kernels are compiled, and not interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )


# The interpreter takes its time by the operation and not by the element: some 60 of them a program.
_WIDE = (
    (int8_rows, "_ELEMENTS", 1 << 18),
    (rms_norm, "_ELEMENTS", 1 << 18),
    (rope, "_BLOCK_T", 512),
    (tree_attention, "_BLOCK_M", 512),
    (tree_attention, "_BLOCK_N", 256),
    (tree_attention, "_MERGED", 1 << 18),
    (int8_gemm, "_BLOCKS", {"BLOCK_M": 256, "BLOCK_N": 512, "BLOCK_K": 512}),
)


_dot = interpreter_builder.create_dot


def _exact(self, a, b, d, *options):
    """int8 products through float64, which has every int32 sum exactly, where NumPy's own for integers are a
    hundred times slower."""
    if a.data.dtype != np.int8 or b.data.dtype != np.int8:
        return _dot(a, b, d, *options)
    product = a.data.astype(np.float64) @ b.data.astype(np.float64)
    return TensorHandle(product.astype(np.int32) + d.data, d.dtype.scalar)


def _in_order(self, a, b, d, *options):
    """Each element's products added one after the other, as a GPU's does in every row of a tile alike. BLAS
    promises no such thing: OpenBLAS rounds a block's last rows differently, on CPUs with AVX2 alone."""
    product = (a.data[:, :, None] * b.data[None]).sum(1)  # NumPy adds along an outer axis in order
    return TensorHandle(product + d.data, d.dtype.scalar)


@contextmanager
def rows_alike() -> Iterator[None]:
    """A row's bits do not depend on where in its tile it stands: for tests that compare bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(interpreter_builder), "create_dot", _in_order)
        yield


@contextmanager
def wide_blocks() -> Iterator[None]:
    """The same kernels in larger blocks, far fewer programs, and their int8 products exact and fast. For
    whole guards: tests of a kernel are about the blocks that it is compiled with."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in _WIDE:
            patch.setattr(module, name, value)
        patch.setattr(type(interpreter_builder), "create_dot", _exact)
        yield
