"""The commands `aegis-edge data ...`: names, options and help. What they do is in `data.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="data", help="Look at labelled data files, and clean them.", no_args_is_help=True)

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILES...",
        help="Published Aegis 2.0 files or the project's own schema: a JSON array or JSON lines, also .gz.",
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out and count rows that can not be read, instead of stopping."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def stats(
    files: Files,
    json: Json = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="F.png", help="Draw the counts as well.")
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Count records by split, label, category, label source and source.

    A file's split is read from its name: train, validation (dev), test.
    """
    from aegis_edge.cli import data as command

    command.stats(files, skip_bad=skip_bad, plot=plot, as_json=json)


@app.command()
def dedupe(
    files: Files,
    out: Annotated[
        Path, typer.Option("--out", metavar="F.jsonl", help="The rows kept, as they were, a JSON line each.")
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="FILE", help="Held-out records; may be given several times."),
    ] = None,
    within: Annotated[
        bool, typer.Option("--within", help="Also drop rows whose texts an earlier row of FILES has.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            min=0.01,
            max=1.0,
            help="Near: the prompt holds this share of a held-out prompt's word 5-grams.",
        ),
    ] = 0.5,
    removed: Annotated[
        Path | None,
        typer.Option("--removed", metavar="F.jsonl", help="What was dropped, because of which row."),
    ] = None,
    skip_bad: SkipBad = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    json: Json = False,
) -> None:
    """Drop rows whose prompt repeats a held-out prompt, exactly or nearly."""
    from aegis_edge.cli import data as command

    if not against and not within:
        raise typer.BadParameter("nothing to compare with: give --against FILE, --within, or both")
    command.dedupe(
        files,
        against or [],
        out,
        removed=removed,
        threshold=threshold,
        within=within,
        skip_bad=skip_bad,
        force=force,
        as_json=json,
    )
