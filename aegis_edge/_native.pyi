"""
The compiled runtime: a decoder forward over a token tree. Wrapped by aegis_edge.scoring.cpu.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


def available_isas() -> list[str]:
    """Instruction sets of this build that this CPU has, best first."""

def isa() -> str:
    """
    The instruction set in use. Raises ValueError where AEGIS_EDGE_ISA names one that is unknown or missing.
    """

def usable_threads() -> int:
    """Threads this process may use (affinity and cgroup quota)."""

def int8_peak(threads: int, seconds: float = 0.3) -> float:
    """
    Register-only int8 dot products: operations a second (2 a multiply-add).
    """

def gemm_speed(rows: int, n: int, k: int, threads: int, copies: int = 1, rounds: int = 50) -> tuple[float, float]:
    """
    A W8A8 GEMM [rows, k] x [n, k] and, in turn with it, the register-only peak: operations a second, best rounds.
    """

def read_bandwidth(threads: int, megabytes: int = 64, seconds: float = 0.3) -> float:
    """Memory read speed in bytes a second."""

class Model:
    """A decoder's weights and its thread team."""

    def __init__(self, *, layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, vocab: int, context: int, rows: int, norm_eps: float, hadamard_block: int, rope_scale: Sequence[float], inverse_frequency: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], threads: int, gelu: bool = False, qk_norm: bool = False, out_norms: bool = False, softcap: float = 0.0, input_block: int = 0, windows: Sequence[int] = [], rope_of: Sequence[int] = []) -> None: ...

    @property
    def threads(self) -> int: ...

    @property
    def isa(self) -> str: ...

    def set_int8(self, layer: int, name: str, weight: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def set_int4(self, layer: int, name: str, weight: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], group_scale: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def set_bf16(self, layer: int, name: str, weight: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None: ...

    def set_bias(self, layer: int, name: str, bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def set_norm(self, layer: int, name: str, weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def set_embedding(self, rows: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None: ...

    def set_head(self, weight: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def check_complete(self) -> None: ...

    def compute_root(self, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[Annotated[NDArray[numpy.uint16], dict(order='C')], Annotated[NDArray[numpy.uint16], dict(order='C')]]:
        """
        Keys [L, Hkv, ceil(n/16), d/2, 16, 2] and values [L, Hkv, ceil(n/2), d, 2] of a root, bf16 as uint16.
        """

class Tree:
    """A token tree under a policy root."""

    def __init__(self, model: Model, keys: Annotated[NDArray[numpy.uint16], dict(order='C', device='cpu', writable=False)], values: Annotated[NDArray[numpy.uint16], dict(order='C', device='cpu', writable=False)], tokens: int) -> None: ...

    def __len__(self) -> int: ...

    def extend(self, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], parents: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], slots: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], hidden: bool = False, kept: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, room: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> tuple[Annotated[NDArray[numpy.float32], dict(order='C')], Annotated[NDArray[numpy.float32], dict(order='C')] | None]:
        """
        Adds segments; returns (logits f32 [slots, rows], hidden f32 [slots, hidden] or None).
        """

    def truncate(self, nodes: int) -> None: ...
