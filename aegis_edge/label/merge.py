"""A person's answers brought back: their labels are kept apart from the jury's by `response_label_source`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aegis_edge.label.disagreement import Answer, read_queue
from aegis_edge.label.errors import LabelError, QueueError
from aegis_edge.label.files import same_file, write_json_lines
from aegis_edge.label.rows import HUMAN, JURY, Row, add_categories, read_rows


@dataclass(frozen=True)
class Merged:
    """Counts of rows: labelled by this merge (of them against the jury's label), labelled so before; and of
    lines of the queue without an answer."""

    rows: int
    merged: int
    against_jury: int
    unchanged: int
    open: int


def merge(labelled: Path, queue: Path, out: Path, *, force: bool = False) -> Merged:
    """Write the rows of `labelled` to `out`, those that `queue` answers with the person's label.

    Raises RowError, QueueError; LabelError where `out` exists and `force` is not set. A row that has a human
    label keeps it: an answer that says otherwise is refused.
    """
    if same_file(out, queue):
        raise LabelError(f"{out}: is the queue itself")
    if out.exists() and not force:
        raise LabelError(f"{out}: exists already", hint="--force replaces it")
    rows = read_rows(labelled).good
    found = read_queue(queue)
    keys = {row.key for row in rows}
    for key, answer in found.answers.items():
        if key not in keys:
            altered = any(row.id == key[0] for row in rows)
            what = "another text" if altered else "no such row"
            raise QueueError(f"{queue.name}:{answer.number}: {labelled.name} has {what} for id {key[0]!r}")
    result, merged, against, unchanged = [], 0, 0, 0
    for row in rows:
        given = found.answers.get(row.key)
        if given is None:
            result.append(row)
        elif row.response_label_source == HUMAN and row.response_label is not None:
            if row.response_label != given.label:
                raise QueueError(
                    f"{queue.name}:{given.number}: row {row.id!r} has the human label {row.response_label!r} "
                    f"already, the answer is {given.label!r}",
                    hint="human labels are never overwritten: remove one of the two",
                )
            unchanged += 1
            result.append(row)
        else:
            merged += 1
            against += row.response_label_source == JURY and row.response_label not in (None, given.label)
            result.append(_with_answer(row, given))
    write_json_lines(out, (row.to_json() for row in result))
    return Merged(len(rows), merged, against, unchanged, found.open)


def _with_answer(row: Row, answer: Answer) -> Row:
    """The categories that the jury added stay only where the person says unsafe and names none."""
    if answer.label == "unsafe" and not answer.categories:
        return row.with_label(answer.label, HUMAN, row.violated_categories)
    return row.with_label(answer.label, HUMAN, add_categories(answer.violated_categories, answer.categories))
