"""`aegis-edge bench`: run the benchmark, show its tables, write its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from aegis_edge import machine
from aegis_edge.artifact import Artifact
from aegis_edge.cli.output import aligned, extra, note, progress
from aegis_edge.guard import cache_folder

with extra("bench", "the benchmark"):
    from aegis_edge.bench import gemm, report
    from aegis_edge.bench.run import Progress, Settings, run


class Bars(Progress):
    """Progress on standard error."""

    def say(self, text: str) -> None:
        note(text)

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        with progress() as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)


def bench(settings: Settings, out: Path, *, quick: bool, as_json: bool) -> None:
    """Run, write the report into `out`, print its tables (or its rows). Raises AegisError."""
    settings = replace(settings, work=cache_folder() / "bench")
    if quick:
        settings = replace(
            settings, lengths=(16, 64), rounds=2, compared=min(32, settings.compared), budget=1.0, batch=8
        )
    with redirect_stdout(sys.stderr):  # peers print what they convert
        rows = run(settings, Bars())
    page = report.write(rows, out)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(report.text(rows))
    note(f"report: {page}")


def gemm_alone(guard: Path, threads: int | None, *, as_json: bool) -> None:
    """The shapes of the guard's model and of a 1B model, in shares of the int8 peak."""
    model = Artifact.open(guard, verify=False).manifest["model"]
    models = {"guard": model, "1B": gemm.ONE_BILLION}
    with Bars().steps("GEMM", gemm.count(models)) as done:
        rows = gemm.run(models, machine.describe(threads)["threads"], done)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print("\n".join(aligned(gemm.lines(rows))))
