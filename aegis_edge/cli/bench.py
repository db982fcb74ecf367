"""`aegis-edge bench`: run the benchmark, show its tables, write its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis_edge import machine
from aegis_edge.artifact import Artifact
from aegis_edge.cli.output import aligned, extra, note, progress
from aegis_edge.guard import cache_folder

with extra("bench", "the benchmark"):
    from aegis_edge.bench import gemm, random_model, report
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


# What each --size runs unless told otherwise: where one call takes seconds, fewer of them.
PRESETS: dict[str | None, dict[str, Any]] = {
    None: {},
    "1b": {
        "scorers": ("cpu", "reference-bf16", "openvino"),
        "lengths": (16, 32, 64, 128, 512),
        "rounds": 3,
        "compared": 32,
        "batch": 8,
    },
}


def bench(options: dict[str, Any], size: str | None, out: Path, *, quick: bool, as_json: bool) -> None:
    """Run, write the report into `out`, print its tables (or its rows). Raises AegisError.

    options  of `Settings`, those that were given; size: None, or the model of random weights to make instead
    """
    work = cache_folder() / "bench"
    if size is not None:
        note(f"the {size} model of random weights: made once, in {work}")
        with redirect_stdout(sys.stderr):
            guard, base = random_model.ready(work / f"random-{size}", size)
        options = {**options, "guard": guard, "base": str(base), "adapter": "none"}
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**{**PRESETS[size], **given}, work=work)
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
