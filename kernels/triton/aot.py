"""Ahead-of-time compilation: each kernel for an architecture as a cubin, with what a launcher has to know.

No GPU is needed: Triton brings the assembler. What comes out is loaded through the CUDA driver API alone
(`launch.c`), with neither Triton nor Python on the machine that runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError
from triton.runtime.interpreter import InterpretedFunction

from aegis_edge.errors import AegisError
from aegis_edge.triton import int8_gemm, int8_rows, rms_norm, rope, tree_attention, verdict_head
from aegis_edge.triton.spec import OPTIONS, Shape, Spec

# Architecture -> shared memory that one block may ask for, bytes (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"). Others are refused: Triton's compiler ends the process on a number
# that it does not know.
SHARED_LIMIT = {
    "sm_80": 163 << 10,  # A100
    "sm_86": 99 << 10,  # RTX 30, A10
    "sm_87": 163 << 10,  # Orin
    "sm_89": 99 << 10,  # L4, RTX 40
    "sm_90": 227 << 10,  # H100
    "sm_100": 227 << 10,  # B200
    "sm_120": 99 << 10,  # RTX 50
}
ARCHS = tuple(SHARED_LIMIT)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A kernel for an architecture.

    registers  a thread;  stack: bytes of memory a thread, which is where spilled registers go
    shared     bytes a block, given at launch
    scratch    pointers that Triton adds behind the arguments, for memory that these kernels do not use
    """

    spec: Spec
    arch: str
    cubin: bytes
    entry: str
    threads: int
    registers: int
    stack: int
    shared: int
    scratch: int

    def broken(self) -> list[str]:
        """The stated limits that this kernel breaks, a sentence each."""
        name = f"{self.spec.name} for {self.arch}"
        found = []
        if self.stack:
            found.append(f"{name} spills registers: {self.stack} bytes a thread")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{name} needs {self.shared} bytes of shared memory of {SHARED_LIMIT[self.arch]}")
        return found

    def describe(self) -> dict[str, Any]:
        """The kernel's entry in the manifest."""
        pointers = {name for name, kind in self.spec.signature.items() if kind.startswith("*")}
        return {
            "name": self.spec.name,
            "file": f"{self.spec.name}.cubin",
            "entry": self.entry,
            "arguments": [
                {
                    "name": name,
                    "type": kind,
                    "multiple_of": 16 if name in pointers | self.spec.multiples else 1,
                }
                for name, kind in self.spec.signature.items()
            ],
            "scratch_pointers": self.scratch,
            "constants": dict(self.spec.constants),
            "threads": self.threads,
            "shared": self.shared,
            "registers": self.registers,
            "stack": self.stack,
        }

    def line(self) -> str:
        """The kernel's line in kernels.txt, which `launch.c` reads."""
        letters = "".join(kind[0].replace("*", "p") for kind in self.spec.signature.values())
        return f"{self.spec.name} {self.entry} {self.threads} {self.shared} {letters}\n"


def specs(shape: Shape) -> list[Spec]:
    """Every kernel that the cuda scorer launches."""
    return [
        *verdict_head.specs(shape),
        *tree_attention.specs(shape),
        rope.spec(shape),
        *(rms_norm.spec(shape, add=add) for add in (False, True)),
        *int8_rows.specs(shape),
        *int8_gemm.specs(shape),
    ]


def check_archs(archs: Sequence[str]) -> None:
    """Raise AegisError for an architecture that is not one of ARCHS."""
    for arch in archs:
        if arch not in ARCHS:
            raise AegisError(f"unknown architecture {arch!r}", hint=f"architectures: {', '.join(ARCHS)}")


def compile_spec(spec: Spec, arch: str) -> Compiled:
    """Compile one kernel. Raises AegisError where Triton does not take it."""
    check_archs([arch])
    if isinstance(spec.kernel, InterpretedFunction):
        raise AegisError("kernels that are interpreted are not compiled", hint="unset TRITON_INTERPRET")
    signature = dict(spec.signature)
    for name, value in spec.constants.items():
        signature[name] = "constexpr"
        if name not in spec.kernel.arg_names:
            raise AegisError(f"{spec.name} has no constant {name}={value}")
    signature = {name: signature[name] for name in spec.kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in spec.multiples
    }
    source = ASTSource(spec.kernel, signature, dict(spec.constants), divisible)
    options = {**OPTIONS, "enable_fp_fusion": True}
    try:
        made = triton.compile(source, target=GPUTarget("cuda", int(arch[3:]), 32), options=options)
    except (TritonError, RuntimeError) as error:
        raise AegisError(f"{spec.name} does not compile for {arch}: {error}") from error
    cubin, meta = made.asm["cubin"], made.metadata
    if meta.global_scratch_size or getattr(meta, "profile_scratch_size", 0):
        raise AegisError(f"{spec.name} for {arch} wants scratch memory, which the launcher does not give")
    registers, stack = resources(cubin, meta.name)
    threads = meta.num_warps * meta.warp_size
    parameters = made.asm["ptx"].partition(".entry")[2].partition(")")[0].count(".param")
    scratch = parameters - len(spec.signature)
    return Compiled(spec, arch, cubin, meta.name, threads, registers, stack, meta.shared, scratch)


def resources(cubin: bytes, entry: str) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) a thread, as the cubin itself states them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        tool = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        listing = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    finally:
        os.unlink(file.name)
    found = re.search(
        rf"Function {re.escape(entry)}:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing
    )
    if found is None:
        raise AegisError(f"the resources of {entry} can not be read from its cubin")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
