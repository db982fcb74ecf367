"""A table as text: what a terminal and a page show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A title, a sentence on how to read it ("" for none), column names, and lines of as many cells."""

    title: str
    note: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def counts(
    title: str, note: str, rows: Sequence[str], columns: Sequence[str], of: Mapping[tuple[str, str], int]
) -> Table:
    """A table of numbers: `of` maps (column, row) to a count; those it lacks are empty cells."""
    lines = tuple((row, *(_count(of.get((column, row), 0)) for column in columns)) for row in rows)
    return Table(title, note, ("", *columns), lines)


def _count(number: int) -> str:
    return f"{number:,}" if number else ""
