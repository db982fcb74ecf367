"""`aegis-edge data`: statistics of data files, and texts that repeat held-out ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aegis_edge.cli.output import extra, note
from aegis_edge.cli.tables import print_tables
from aegis_edge.cli.writing import refuse_existing, write
from aegis_edge.data.dedupe import HeldOut, repeats
from aegis_edge.data.files import Row, Tally, read_files, split_of
from aegis_edge.data.stats import Statistics, reading
from aegis_edge.tables import Table

SHOWN = 20  # unreadable rows named one by one


def stats(files: Sequence[Path], *, skip_bad: bool, plot: Path | None, as_json: bool) -> None:
    """Count the records of `files` and print the counts. Raises DataError."""
    if plot is not None:
        with extra("evaluate", "a plot"):
            from aegis_edge.data.stats_plot import png
    rows, tallies = read_files(files, skip_bad=skip_bad)
    found = Statistics()
    for path, of in zip(files, rows, strict=True):
        found.add(split_of(path), (row.record for row in of))
    if plot is not None:
        write(plot, png(found))
    if as_json:
        print(json.dumps({"files": [t.to_json() for t in tallies], "splits": found.to_json()}, indent=2))
    else:
        print_tables([reading(tallies), *found.tables()])
    tell(tallies)


def dedupe(
    files: Sequence[Path],
    against: Sequence[Path],
    out: Path,
    *,
    removed: Path | None,
    threshold: float,
    within: bool,
    skip_bad: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the rows of `files` that repeat no prompt of `against`. Raises AegisError."""
    refuse_existing(out, removed, force=force)
    held, held_tallies = read_files(against, skip_bad=skip_bad) if against else ([], [])
    rows, tallies = read_files(files, skip_bad=skip_bad)
    held_rows = [row for of in held for row in of]
    held_out = HeldOut((row.record.prompt for row in held_rows), threshold)
    all_rows = [row for of in rows for row in of]
    earlier = repeats(_turns(row) for row in all_rows) if within else [None] * len(all_rows)
    dropped: list[dict[str, Any]] = []
    kinds: list[str] = []  # of each row
    for row, first in zip(all_rows, earlier, strict=True):
        match = held_out.match(row.record.prompt)
        if match is not None:
            kinds.append(match.kind)
            dropped.append(_because(row, held_rows[match.of], match.kind, match.overlap))
        elif first is not None:
            kinds.append("repeat")
            dropped.append(_because(row, all_rows[first], "repeat", 1.0))
        else:
            kinds.append("kept")
    write(out, _lines(row.raw for row, kind in zip(all_rows, kinds, strict=True) if kind == "kept"))
    if removed is not None:
        write(removed, _lines(dropped))
    _report([len(of) for of in rows], kinds, tallies, as_json=as_json)
    tell([*tallies, *held_tallies])


def tell(tallies: Iterable[Tally]) -> None:
    """Name what a reading left out, on standard error."""
    for tally in tallies:
        bad = tally.unreadable
        for message in bad[:SHOWN]:
            note(f"skipped: {message}")
        if len(bad) > SHOWN:
            note(f"skipped: {tally.file}: {len(bad) - SHOWN} more rows that can not be read")
        if tally.redacted:
            note(f"{tally.file}: {tally.redacted} redacted rows left out")
        if tally.empty_turns:
            note(f"{tally.file}: {tally.empty_turns} turns of dialogues without text left out")
        if tally.unknown_categories:
            names = ", ".join(f"{name!r} ({n})" for name, n in tally.unknown_categories.most_common(SHOWN))
            note(f"{tally.file}: category names that are not in the taxonomy: {names}")


def _turns(row: Row) -> tuple[str, ...]:
    record = row.record
    return (record.prompt,) if record.response is None else (record.prompt, record.response)


def _because(row: Row, of: Row, kind: str, overlap: float) -> dict[str, Any]:
    return {"row": row.place, "of": of.place, "kind": kind, "overlap": round(overlap, 4)}


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _report(sizes: Sequence[int], kinds: Sequence[str], tallies: Sequence[Tally], *, as_json: bool) -> None:
    """Counts of each file's `sizes` rows by what became of them."""
    names = ("exact", "near", "repeat", "kept")
    found: list[dict[str, Any]] = []
    start = 0
    for tally, size in zip(tallies, sizes, strict=True):
        counted = Counter(kinds[start : start + size])
        start += size
        found.append({"file": tally.file, "records": size} | {name: counted[name] for name in names})
    if as_json:
        print(json.dumps({"files": found}, indent=2))
        return
    how = (
        "exact, near: of a held-out prompt. repeat: the same prompt and response stand in an earlier row. "
        "Prompts of fewer than five words match exactly or not at all."
    )
    lines = tuple((f["file"], *(f"{f[name]:,}" for name in ("records", *names))) for f in found)
    print_tables([Table("Removed", how, ("file", "records", *names), lines)])
