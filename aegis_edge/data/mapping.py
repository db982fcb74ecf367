"""Source categories to Aegis 2.0; the tables, one a source, are in `tables/`.

A table maps the source's label to two sets of S-codes:
  certain   the text falls under these; used as positives of category leaves
  possible  it may well fall under these too; never used as negatives
Written "S8 | S10 S11": certain, bar, possible. An unsafe text whose label is in no table could be anything:
then every category is possible. The vague categories (Needs Caution, Other, Illegal Activity,
Immoral/Unethical) can cover nearly every unsafe text, so they are always at least possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aegis_edge import taxonomy
from aegis_edge.data.tables import aegis, dialogues, requests
from aegis_edge.data.tables.shared import HATE

ALL_CODES: tuple[str, ...] = tuple(hazard.code for hazard in taxonomy.HAZARDS)
VAGUE: frozenset[str] = frozenset({"S13", "S14", "S22", "S23"})


@dataclass(frozen=True)
class Categories:
    """S-codes: certain ones hold; possible ones (a superset) may hold, all others do not."""

    certain: frozenset[str] = frozenset()
    possible: frozenset[str] = frozenset()


UNKNOWN = Categories(frozenset(), frozenset(ALL_CODES))

# Sources whose label, or one of whose labels, is a key as it stands.
TABLES: dict[str, dict[str, str]] = {
    "forbidden_questions": requests.FORBIDDEN_QUESTIONS,
    "figstep_safebench": requests.FIGSTEP,
    "sap200": requests.SAP,
    "jbb_artifacts": requests.JBB,
    "davidson": dialogues.COMMENTS,
    "edos": dialogues.COMMENTS,
    "hatemoji_train": dialogues.COMMENTS,
    "surge_toxicity": dialogues.COMMENTS,
    "diasafety_train": dialogues.DIASAFETY,
    "diasafety_val": dialogues.DIASAFETY,
    "safetext": dialogues.SAFETEXT,
}


def parse(entry: str) -> Categories:
    """A table's entry."""
    certain, _, possible = entry.partition("|")
    sure = frozenset(certain.split())
    return Categories(sure, sure | frozenset(possible.split()) | VAGUE)


def aegis_codes(names: Iterable[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """(codes of Aegis 2.0 category names, in any spelling `taxonomy.find` takes; the names it does not know).

    A name that ends in a question mark ("Violence?") is an annotator's doubt and counts as not known. Empty
    names are left out.
    """
    codes: set[str] = set()
    unknown = []
    for name in filter(None, (name.strip() for name in names)):
        hazard = None if name.endswith("?") else taxonomy.find(name)
        if hazard is None:
            unknown.append(name)
        else:
            codes.add(hazard.code)
    return frozenset(codes), tuple(unknown)


def with_neighbours(codes: frozenset[str]) -> Categories:
    """Aegis codes that annotators named, and what may hold beside them; UNKNOWN where there are none."""
    if not codes:
        return UNKNOWN
    near = {c for code in codes for c in aegis.NEIGHBOURS[code].split()}
    return Categories(codes, codes | near | VAGUE)


def map_categories(source: str, raw: Any) -> Categories:
    """The Aegis 2.0 categories of an unsafe text of `source` with its own label `raw`."""
    labels = _flat(raw)
    if source.startswith("aegis"):
        return with_neighbours(aegis_codes(name for label in labels for name in label.split(","))[0])
    if source.startswith("mlc_"):
        return _first(requests.MLC, labels)
    if source == "salad_mcq_queries":
        return _salad(labels)
    if source == "trustllm_misuse":
        return _first(requests.TRUSTLLM, [label.split(":")[0] for label in reversed(labels)])
    if source == "catqa_en":
        fine = _first(requests.CATQA_FINE, labels[1:])
        return fine if fine is not UNKNOWN else _first(requests.CATQA, labels)
    if source == "aart":
        return _within(requests.AART, labels[0])
    if source == "med_safety_train":
        return _within(dialogues.MEDICAL, labels[0])
    if source == "toxigen_demonstrations":
        return parse(HATE)
    return _first(TABLES.get(source, {}), labels)


def _flat(raw: Any) -> list[str]:
    """The labels of a row, most specific last. Some files hold lists or dictionaries, a few as text."""
    if isinstance(raw, dict):
        return [str(v) for v in raw.values()]
    if isinstance(raw, (list, tuple)):
        return [str(v) for v in raw]
    return [str(raw)]


def _first(table: dict[str, str], labels: Iterable[str]) -> Categories:
    for label in labels:
        if label in table:
            return parse(table[label])
    return UNKNOWN


def _within(table: dict[str, str], label: str) -> Categories:
    """The first entry whose key stands in the label; tables list the specific keys first."""
    return next((parse(entry) for key, entry in table.items() if key in label), UNKNOWN)


def _salad(labels: list[str]) -> Categories:
    match = re.match(r"O\d+", labels[-1])
    return _first(requests.SALAD, [match.group()] if match else [])
