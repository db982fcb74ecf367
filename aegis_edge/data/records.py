"""One labelled conversation, and reading files of the project's own schema (JSON lines, plain or gzip)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_edge.data.mapping import Categories, map_categories
from aegis_edge.errors import AegisError


class DataError(AegisError):
    """A row that does not follow the schema; the message names file and line."""


@dataclass(frozen=True)
class Record:
    """A prompt, perhaps a response, and what is known about them.

    unsafe, response_unsafe   None where unlabelled
    raw_category              the source's own label
    categories                the same in Aegis 2.0 codes; both are the dialogue's, not a turn's
    prompt_label_source, response_label_source
                              who labelled ("human", "llm_jury"), None where the file does not tell
    id                        the row's own, None where it has none
    """

    prompt: str
    response: str | None
    unsafe: bool | None
    response_unsafe: bool | None
    categories: Categories
    raw_category: Any
    source: str
    prompt_label_source: str | None = None
    response_label_source: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Topic:
    """What a policy may be about: one of the project's own (topics.py), with what prompts on it are made of;
    or a published dialogue's (canttalk.py), with the domain it is of."""

    name: str
    description: str
    subjects: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    domain: str | None = None


_LABELS: dict[Any, bool | None] = {"safe": False, "unsafe": True, None: None}


def parse_row(row: Any) -> Record:
    """A row of the schema as a record. Raises DataError without a place, which the reader of a file knows."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise DataError("a row needs a non-empty `prompt`")
    response = row.get("response")
    if response is not None and not isinstance(response, str):
        raise DataError("`response` is text or null")
    try:
        unsafe, response_unsafe = _LABELS[row.get("prompt_label")], _LABELS[row.get("response_label")]
    except (KeyError, TypeError):
        raise DataError("labels are `safe`, `unsafe` or null") from None
    source, raw = str(row.get("source", "")), row.get("category")
    any_unsafe = bool(unsafe) or bool(response_unsafe)
    categories = map_categories(source, raw) if any_unsafe else Categories()
    if not (response and response.strip()):
        response, response_unsafe = None, None
    return Record(row["prompt"], response, unsafe, response_unsafe, categories, raw, source)


def read_records(path: str | Path, skip_bad: bool = False) -> Iterator[Record]:
    """Yield the rows of a file. Raises DataError with file and line, or skips such rows with `skip_bad`."""
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield parse_row(json.loads(line))
            except (DataError, json.JSONDecodeError) as error:
                if not skip_bad:
                    raise DataError(
                        f"{path.name}:{number}: {error}", hint="`skip_bad` leaves such rows out"
                    ) from error
