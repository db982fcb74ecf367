"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from aegis_edge.cli.output import printable
from aegis_edge.tables import Table


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables that have a line; the first column is aligned left, the others right."""
    console = Console(highlight=False)
    for table in tables:
        if table.lines:
            _print(console, table)


def _print(console: Console, table: Table) -> None:
    drawn = Drawn(title=_text(table.title), title_justify="left", caption_justify="left", title_style="bold")
    if table.note:
        drawn.caption = _text(table.note)
    for index, name in enumerate(table.columns):
        drawn.add_column(_text(name), justify="right" if index else "left", overflow="fold")
    for line in table.lines:
        drawn.add_row(*map(_text, line))
    if console.is_terminal:
        console.print(drawn)
        return
    # A file has no width: nothing in it is to be cut to that of a terminal.
    wide = Console(highlight=False, width=10_000)
    console.width = wide.measure(drawn).maximum
    console.print(drawn)


def _text(text: str) -> Text:
    """Names come from data files: as Text, no bracket in them is taken for markup."""
    return Text(printable(text))
