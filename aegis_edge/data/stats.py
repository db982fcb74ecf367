"""How many records there are: by split, label, category, label source and source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis_edge import taxonomy
from aegis_edge.data.files import Tally
from aegis_edge.data.records import Record
from aegis_edge.tables import Table, counts

Cell = tuple[str, str]  # (split, what is counted)

NO_CATEGORY = "none certain"
NOT_TOLD = "not told"
_LABEL = {False: "safe", True: "unsafe", None: "unlabelled"}
_TURNS = ("prompt", "response")


@dataclass
class Statistics:
    """Counts of records; the key of each is (split, value).

    splits         in the order they came
    labels         "prompt safe", "prompt unlabelled", "response unsafe", ..., "response none"
    categories     codes that certainly hold, of records with an unsafe turn: one record may count in several,
                   or under `NO_CATEGORY`
    label_sources  "prompt human", "response llm_jury", ..., of labelled turns
    sources        the records' sources
    """

    splits: list[str] = field(default_factory=list)
    labels: Counter[Cell] = field(default_factory=Counter)
    categories: Counter[Cell] = field(default_factory=Counter)
    label_sources: Counter[Cell] = field(default_factory=Counter)
    sources: Counter[Cell] = field(default_factory=Counter)

    def add(self, split: str, records: Iterable[Record]) -> None:
        """Count records of a split."""
        if split not in self.splits:
            self.splits.append(split)
        for record in records:
            self._add(split, record)

    def _add(self, split: str, record: Record) -> None:
        self.sources[split, record.source or NOT_TOLD] += 1
        self.labels[split, f"prompt {_LABEL[record.unsafe]}"] += 1
        response = "none" if record.response is None else _LABEL[record.response_unsafe]
        self.labels[split, f"response {response}"] += 1
        if record.unsafe is not None:
            self.label_sources[split, f"prompt {record.prompt_label_source or NOT_TOLD}"] += 1
        if record.response_unsafe is not None:
            self.label_sources[split, f"response {record.response_label_source or NOT_TOLD}"] += 1
        if record.unsafe or record.response_unsafe:
            for code in record.categories.certain or (NO_CATEGORY,):
                self.categories[split, code] += 1

    def total(self, split: str) -> int:
        """Records of a split."""
        return sum(count for (of, _), count in self.sources.items() if of == split)

    def to_json(self) -> dict[str, Any]:
        """{split: {"records": n, "labels": {...}, "categories": {...}, ...}}, the zeros left out."""
        groups = {
            "labels": self.labels,
            "categories": self.categories,
            "label_sources": self.label_sources,
            "sources": self.sources,
        }
        return {
            split: {
                "records": self.total(split),
                **{
                    name: {what: count for (of, what), count in sorted(group.items()) if of == split}
                    for name, group in groups.items()
                },
            }
            for split in self.splits
        }

    def tables(self) -> list[Table]:
        """One for each of the groups; a column a split."""
        total = Counter({(split, "records"): self.total(split) for split in self.splits})
        labels = [f"{turn} {label}" for turn in _TURNS for label in ("safe", "unsafe", "unlabelled", "none")]
        codes = [hazard.code for hazard in taxonomy.HAZARDS] + [NO_CATEGORY]
        named = Counter({(split, category_name(code)): n for (split, code), n in self.categories.items()})
        note = (
            "Unsafe dialogues. The category is the dialogue's, not a turn's; one dialogue may have several."
        )
        return [
            self._table("Records and labels", "", ["records", *labels], total + self.labels),
            self._table("Categories", note, [category_name(code) for code in codes], named),
            self._table("Label sources", "Who labelled, where the file tells.", None, self.label_sources),
            self._table("Sources", "", None, self.sources),
        ]

    def _table(self, title: str, note: str, rows: Sequence[str] | None, of: Counter[Cell]) -> Table:
        present = {what for _, what in of}
        kept = sorted(present) if rows is None else [row for row in rows if row in present]
        return counts(title, note, kept, self.splits, of)


def category_name(code: str) -> str:
    """ "S1 Violence" for "S1"; other text as it is."""
    hazard = taxonomy.find(code)
    return code if hazard is None else f"{hazard.code} {hazard.name}"


def reading(tallies: Sequence[Tally]) -> Table:
    """What became of every file's rows."""
    columns = ("file", "rows", "records", "redacted", "unreadable", "empty responses", "contradictions")
    note = (
        "Redacted and unreadable rows are left out. Empty responses: their label is left out, the prompt "
        "stays. Contradictions: categories are named though no turn is labelled unsafe."
    )
    return Table(
        "Files",
        note,
        columns,
        tuple(
            (
                t.file,
                *(f"{n:,}" for n in (t.rows, t.records, t.redacted, len(t.unreadable))),
                *(f"{n:,}" for n in (t.empty_responses, t.contradictions)),
            )
            for t in tallies
        ),
    )
