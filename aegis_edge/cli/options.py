"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GuardFolder = Annotated[
    Path | None,
    typer.Option(
        "--guard", metavar="DIR", help="An exported guard (else $AEGIS_EDGE_GUARD, else the default guard)."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, help="Threads (else all that this process may use)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
