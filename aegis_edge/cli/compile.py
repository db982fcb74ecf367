"""`aegis-edge compile`: the GPU kernels ahead of time, a folder an architecture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_edge.cli.output import FAILURE, extra, progress, report
from aegis_edge.cli.tables import print_tables
from aegis_edge.cli.writing import refuse_existing, write
from aegis_edge.tables import Table

if TYPE_CHECKING:
    from aegis_edge.triton.aot import Compiled
    from aegis_edge.triton.spec import Shape

MANIFEST = "manifest.json"
FORMAT = 1


def compile_kernels(
    archs: Sequence[str], out: Path, guard: Path | None, dtype: str, *, force: bool, as_json: bool
) -> int:
    """Write `out/ARCH/*.cubin` and a manifest each, print what they take; returns the exit code.

    Raises AegisError for an unknown architecture, a missing package, or a kernel that does not compile.
    """
    with extra("cuda", "compiling kernels"):
        import triton

        from aegis_edge.triton.aot import ARCHS, check_archs, compile_spec, specs
    wanted = ARCHS if "all" in archs else tuple(dict.fromkeys(archs))
    check_archs(wanted)
    shape = _shape(guard, dtype)
    refuse_existing(*(out / arch / MANIFEST for arch in wanted), force=force)
    made: list[Compiled] = []
    with progress() as bar:
        task = bar.add_task("compiling", total=len(wanted) * len(specs(shape)))
        for arch in wanted:
            for spec in specs(shape):
                made.append(compile_spec(spec, arch))
                bar.advance(task)
    for arch in wanted:
        mine = [kernel for kernel in made if kernel.arch == arch]
        for kernel in mine:
            write(out / arch / f"{kernel.spec.name}.cubin", kernel.cubin)
        about = {"format": FORMAT, "arch": arch, "triton": triton.__version__, "shape": asdict(shape)}
        about["kernels"] = [kernel.describe() for kernel in mine]
        write(out / arch / "kernels.txt", "".join(kernel.line() for kernel in mine).encode())
        # Last: a folder with a manifest has everything that it names.
        write(out / arch / MANIFEST, (json.dumps(about, indent=1) + "\n").encode())
    broken = [sentence for kernel in made for sentence in kernel.broken()]
    if as_json:
        rows = [{"arch": kernel.arch, **kernel.describe()} for kernel in made]
        print(json.dumps({"shape": asdict(shape), "kernels": rows, "broken": broken}, indent=1))
    else:
        print_tables([_table(made)])
    for sentence in broken:
        report(sentence)
    return FAILURE if broken else 0


def _shape(guard: Path | None, dtype: str) -> Shape:
    """The sizes of a guard's decoder; None: those of the default guard (SmolLM2-135M)."""
    from aegis_edge.artifact import Artifact
    from aegis_edge.triton.spec import Shape

    if guard is None:
        sizes = {"hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "intermediate": 1536}
        return Shape(**sizes, hadamard=512, bias=False, rows=6, dtype=dtype)
    artifact = Artifact.open(guard)
    manifest = artifact.manifest
    names = ("hidden", "heads", "kv_heads", "head_dim", "intermediate")
    sizes = {key: manifest["model"][key] for key in names}
    block = manifest["quantization"]["hadamard_block"]
    bias = "layers.0.qkv.bias" in artifact.tensor_names()
    return Shape(**sizes, hadamard=block, bias=bias, rows=len(manifest["head"]["rows"]), dtype=dtype)


def _table(made: Sequence[Compiled]) -> Table:
    lines = tuple(
        (
            f"{kernel.spec.name} {kernel.arch}",
            str(kernel.threads),
            str(kernel.registers),
            str(kernel.stack),
            str(kernel.shared),
            str(len(kernel.cubin)),
        )
        for kernel in made
    )
    columns = ("kernel", "threads", "registers", "spilled bytes", "shared bytes", "cubin bytes")
    return Table(
        "Compiled kernels", "registers and spilled bytes a thread, shared bytes a block", columns, lines
    )
