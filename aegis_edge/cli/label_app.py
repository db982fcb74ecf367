"""The commands `aegis-edge label` and `label merge`: options and help. What they do is in `label.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="label", invoke_without_command=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def label(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="F.jsonl", help="Rows in the schema of Aegis 2.0, plain or .gz."),
    ] = None,
    jury: Annotated[
        Path | None, typer.Option("--jury", metavar="J.toml", help="The judges: endpoints and local guards.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="F.jsonl", help="Labelled rows.")] = None,
    queue: Annotated[
        Path | None,
        typer.Option("--queue", metavar="F.jsonl", help="Rows for a person (else OUT.queue.jsonl)."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="F.jsonl", help="Votes, kept as they come (else OUT.votes.jsonl)."),
    ] = None,
    split: Annotated[
        bool, typer.Option("--split", help="Queue rows too on which the judges were not of one mind.")
    ] = False,
    relabel: Annotated[
        bool, typer.Option("--relabel", help="Vote on rows too that a jury labelled before.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable rows out instead of refusing the file.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT; votes cast are kept.")] = False,
    json: Json = False,
) -> None:
    """Label responses by a jury: a majority of judges, and a queue for a person where there is none.

    Run it again after a kill or a failure: votes that were cast are not asked for again.
    """
    if context.invoked_subcommand is not None:
        return
    from aegis_edge.cli import label as command

    if data is None or jury is None or out is None:
        raise typer.BadParameter("--data, --jury and --out are needed")
    command.label(
        command.Settings(data, jury, out, queue, journal, split, relabel, skip_bad, force), as_json=json
    )


@app.command()
def merge(
    labelled: Annotated[Path, typer.Argument(metavar="LABELLED", help="What `label` wrote.")],
    queue: Annotated[Path, typer.Argument(metavar="QUEUE", help="The queue, with human_label filled in.")],
    out: Annotated[Path, typer.Option("--out", metavar="F.jsonl", help="Rows with the person's labels.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    json: Json = False,
) -> None:
    """Merge a person's labels back; response_label_source tells them from the jury's."""
    from aegis_edge.cli import label as command

    command.merge(labelled, queue, out, force=force, as_json=json)
