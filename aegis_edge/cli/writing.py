"""Files that a command writes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from aegis_edge.errors import AegisError


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; one whose name ends in .gz compressed. Raises AegisError."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        os.replace(part, path)
    except OSError as error:
        raise AegisError(f"{path}: can not be written: {error.strerror}") from error


def refuse_existing(*paths: Path | None, force: bool) -> None:
    """Raise AegisError where one of `paths` is there, unless `force`; before any work is done."""
    for path in paths:
        if path is not None and path.exists() and not force:
            raise AegisError(f"{path} exists", hint="--force replaces it")
