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

import torch
from torch import Tensor


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
