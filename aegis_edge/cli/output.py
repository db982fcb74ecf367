"""What all commands print alike: errors with hints, notes, colours, progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

SAFE, UNSAFE, USAGE, FAILURE, INTERRUPTED = 0, 1, 2, 3, 130

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


def report(error: object, *, hint: str | None = None) -> None:
    """Print an error on standard error, and the hint that it carries or that is given."""
    hint = hint or getattr(error, "hint", None)
    name = "" if isinstance(error, str) or _is_expected(error) else f"{type(error).__name__}: "
    sys.stdout.flush()  # where both go to one terminal, data printed before stays before
    print(f"{paint('error:', 'red', sys.stderr)} {name}{printable(str(error))}", file=sys.stderr)
    if hint:
        print(f"{paint('hint:', 'yellow', sys.stderr)} {printable(hint)}", file=sys.stderr)


def note(text: str) -> None:
    """Print a line for a person on standard error."""
    print(printable(text), file=sys.stderr)


def paint(text: str, colour: str, stream: TextIO) -> str:
    """`text` in a colour where `stream` is a terminal and NO_COLOR is unset or empty."""
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """`text` without control characters, which could move the cursor or retitle the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """A line of text for each line of cells; the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values on standard output, the values aligned."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{paint(name.ljust(width), 'bold', sys.stdout)}  {printable(value)}")


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Imports that need the extra `name`; one that is missing becomes an error with a hint."""
    try:
        yield
    except ModuleNotFoundError as error:
        from aegis_edge.errors import AegisError

        raise AegisError(
            f"{what} needs {error.name}, which is not installed", hint=f"pip install 'aegis-edge[{name}]'"
        ) from error


def progress(unit: str = "") -> Progress:
    """A progress bar on standard error: what is done, how much of it (counted, or in bytes), the time left.

    It shows itself on a terminal only, and vanishes when done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    console = Console(stderr=True, highlight=False)  # obeys NO_COLOR
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _is_expected(error: object) -> bool:
    from aegis_edge.errors import AegisError

    return isinstance(error, AegisError)


def size(count: float) -> str:
    """A number of bytes for a person: 1234567 is "1.2 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
