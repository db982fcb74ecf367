"""The options of `aegis-edge bench`. What it does is in bench.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aegis_edge.cli.options import GuardFolder, Json, Threads


def bench(
    guard: GuardFolder = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The guard's base model (else what the guard says of itself)."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="The guard's adapter (else what the guard says of itself)."),
    ] = None,
    size: Annotated[
        Literal["1b"] | None,
        typer.Option(
            "--size", help="A model of that size and random weights, made once, instead of --guard."
        ),
    ] = None,
    scorers: Annotated[
        str | None,
        typer.Option(
            "--scorers",
            metavar="A,B",
            help="Scorers and peers, or single variants of them (else cpu,reference).",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths", metavar="N,N", help="Prompt lengths in tokens (else 16,32,64,128,256,512)."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Turns of each scorer a scenario (else 10).")
    ] = None,
    threads: Threads = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="F.jsonl", help="Compare verdicts on these instead of generated prompts."
        ),
    ] = None,
    compared: Annotated[
        int | None, typer.Option("--compared", min=1, help="Prompts to compare verdicts on (else 256).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path(
        "bench-results"
    ),
    gemm: Annotated[
        bool, typer.Option("--gemm", help="The int8 GEMM alone, in shares of this machine's peak.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two lengths, two rounds: to see that it runs.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare scorers in one run: verdicts first, then time, stages, memory. Writes rows, a plot and a
    page."""
    from aegis_edge.cli import bench as command
    from aegis_edge.guard import find_guard

    if size is not None and (guard or base or adapter or gemm):
        raise typer.BadParameter("--size can not be combined with --guard, --base, --adapter or --gemm")
    folder = guard or (None if size else find_guard())
    if gemm and folder:
        return command.gemm_alone(folder, threads, as_json=json)
    options = {
        "guard": folder,
        "base": base,
        "adapter": adapter,
        "scorers": _names(scorers) if scorers is not None else None,
        "lengths": _numbers(lengths) if lengths is not None else None,
        "rounds": rounds,
        "threads": threads,
        "prompts": prompts,
        "compared": compared,
    }
    command.bench(options, size, out, quick=quick, as_json=json)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(",", " ").split())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(number) for number in _names(text)}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise typer.BadParameter(f"--lengths takes whole numbers from 1 on, not {text!r}")
    return numbers
