"""A report folder: rows.jsonl, times.png, and index.html, which needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aegis_edge.bench.plot import png
from aegis_edge.bench.tables import of_kind, scorers, tables
from aegis_edge.cli.output import aligned

TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write the three files; returns the page. An earlier report in `folder` is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    picture = png(rows)
    (folder / "times.png").write_bytes(picture)
    (folder / "index.html").write_text(page(rows, picture), encoding="utf-8")
    return folder / "index.html"


def page(rows: Sequence[dict[str, Any]], picture: bytes) -> str:
    """The HTML page, its plot inside."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    abouts = {row["scorer"]: row["about"] for row in rows}
    return template.render(
        about=rows[0],
        scorers=[(name, abouts[name]) for name in scorers(of_kind(rows, "time"))],
        tables=tables(rows),
        picture=base64.b64encode(picture).decode("ascii"),
    )


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The tables for a terminal, but for the long last one."""
    blocks = []
    for table in tables(rows)[:-1]:
        lines = aligned([table.columns, *table.lines])
        blocks.append("\n".join([table.title, *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)
