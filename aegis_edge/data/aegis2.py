"""A row of `nvidia/Aegis-AI-Content-Safety-Dataset-2.0`, as published.

    id, reconstruction_id_if_redacted, prompt, response, prompt_label, response_label,
    violated_categories, prompt_label_source, response_label_source

What is not obvious about these fields:
  prompt               "REDACTED" where the text may not be passed on; there is nothing to read in such a row
  response             null where there is none; "" with a label in some rows: the label is of no text
  violated_categories  names separated by commas, the most frequent first, in several spellings. They belong
                       to the dialogue: of a safe answer to an unsafe prompt they name what the prompt asks
                       for. Some dialogues that are labelled safe carry them too
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis_edge.data.mapping import ALL_CODES, Categories, aegis_codes, with_neighbours
from aegis_edge.data.records import DataError, Record

SOURCE = "aegis2"
REFUSALS = "aegis2_refusals"  # the rows whose responses were made: refusals_*.json
REDACTED = "REDACTED"
_REFUSAL_LABEL = "refusal_data_augmentation"
# Fields that no other schema has: one is enough to know a row by.
_OWN = frozenset({"violated_categories", "reconstruction_id_if_redacted", "prompt_label_source"})
_LABELS: dict[str, bool | None] = {"safe": False, "unsafe": True, "": None}


@dataclass(frozen=True)
class Parsed:
    """A row of the data set.

    record           None where the row is redacted
    emptied          a label was left out because its response is empty or null
    contradiction    categories are named though neither turn is labelled unsafe
    unknown          category names that are in no spelling of the taxonomy
    """

    record: Record | None
    emptied: bool = False
    contradiction: bool = False
    unknown: tuple[str, ...] = ()


def is_aegis_row(row: Any) -> bool:
    """Whether a JSON value has fields that only this data set has."""
    return isinstance(row, dict) and not _OWN.isdisjoint(row)


def parse_aegis_row(row: dict[str, Any]) -> Parsed:
    """Read a row. Raises DataError that names the field, without a place."""
    prompt, response = row.get("prompt"), row.get("response")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError("a row needs a non-empty `prompt`")
    if response is not None and not isinstance(response, str):
        raise DataError("`response` is text or null")
    unsafe, response_unsafe = _label(row, "prompt_label"), _label(row, "response_label")
    names = _names(row.get("violated_categories"))
    if REDACTED in (prompt.strip(), (response or "").strip()):
        return Parsed(None)
    emptied = False
    if not (response and response.strip()):
        emptied, response, response_unsafe = response_unsafe is not None, None, None
    codes, unknown = aegis_codes(names)
    any_unsafe = bool(unsafe) or bool(response_unsafe)
    label_source = _text(row, "response_label_source")
    record = Record(
        prompt,
        response,
        unsafe,
        response_unsafe,
        _categories(codes, bool(unknown), any_unsafe),
        row.get("violated_categories"),
        REFUSALS if label_source == _REFUSAL_LABEL else SOURCE,
        _text(row, "prompt_label_source"),
        label_source,
        _text(row, "id"),
    )
    return Parsed(record, emptied, bool(names) and not any_unsafe, unknown)


def _categories(codes: frozenset[str], any_unknown: bool, any_unsafe: bool) -> Categories:
    if not any_unsafe:
        # Annotators who call it safe and still name a category do not agree: no positive, but no negative
        # either.
        return Categories(frozenset(), codes)
    if any_unknown:  # a name we can not read may mean any of them
        return Categories(codes, frozenset(ALL_CODES))
    return with_neighbours(codes)


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError("`violated_categories` is text, a list of text, or null")
    return [name for name in value if name.strip()]


def _label(row: dict[str, Any], field: str) -> bool | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or value.strip().casefold() not in _LABELS:
        raise DataError(f"`{field}` is `safe`, `unsafe` or null")
    return _LABELS[value.strip().casefold()]


def _text(row: dict[str, Any], field: str) -> str | None:
    """An id or a label source: what is not text is taken as it is written, what is empty as absent."""
    value = row.get(field)
    return None if value is None else str(value).strip() or None
