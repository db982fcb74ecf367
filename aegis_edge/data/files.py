"""Reading data files of any schema: the published Aegis 2.0 files, the project's own, published dialogues.

A file is a JSON array or JSON lines, plain or gzip; which it is, and which schema a row has, is seen from its
content. A file of dialogues (canttalk.py) holds nothing else and has a reader of its own, since a dialogue is
many texts. Nothing is left out without being counted: a Tally says what became of every row.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from aegis_edge.conversation import Conversation
from aegis_edge.data.aegis2 import Parsed, is_aegis_row, parse_aegis_row
from aegis_edge.data.canttalk import Dialogue, is_dialogue_row, parse_dialogue_row
from aegis_edge.data.records import DataError, Record, parse_row
from aegis_edge.errors import InputError

T = TypeVar("T")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"} | {
    "dev": "validation",
    "test": "test",
}


@dataclass
class Tally:
    """What became of a file's rows; filled while the file is read.

    rows                all, blank lines not counted; the sum of `records`, `redacted` and `unreadable`
    records             read; a dialogue is one
    redacted            left out: published without their text
    empty_responses     records of which a label was left out, because its response is empty or null
    contradictions      records that carry categories though no turn is labelled unsafe
    unknown_categories  name -> times; the records stay, and any category may hold for them
    turns, distractors  texts of the dialogues read, each once a dialogue
    empty_turns         left out of them because they have no text
    unreadable          "train.json: row 7: what is wrong", a line for each row left out
    """

    file: str
    rows: int = 0
    records: int = 0
    redacted: int = 0
    empty_responses: int = 0
    contradictions: int = 0
    unknown_categories: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    distractors: int = 0
    empty_turns: int = 0
    unreadable: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, its keys the names above."""
        return vars(self) | {"unknown_categories": dict(self.unknown_categories)}


@dataclass(frozen=True)
class Row:
    """A record, the JSON object it was read from, and where that stands: "train.json: row 7".

    Rows of an array and lines of a file are counted from 1.
    """

    place: str
    raw: dict[str, Any]
    record: Record


def read_rows(path: str | Path, *, skip_bad: bool = False, tally: Tally | None = None) -> Iterator[Row]:
    """Yield a file's rows in order; redacted ones are counted and left out.

    Raises DataError with file and row at the first row that can not be read, or counts and leaves out such
    rows with `skip_bad`. A file that can not be read as a whole (missing, cut off, no JSON array where it
    begins as one) raises either way: what is missing from it can not be counted.
    """
    path = Path(path)
    tally = Tally(path.name) if tally is None else tally
    for place, value, parsed in _rows(path, _parse, skip_bad, tally):
        tally.unknown_categories.update(parsed.unknown)
        if parsed.record is None:
            tally.redacted += 1
            continue
        tally.records += 1
        tally.empty_responses += parsed.emptied
        tally.contradictions += parsed.contradiction
        record = parsed.record if parsed.record.source else replace(parsed.record, source=_stem(path))
        yield Row(f"{path.name}: {place}", value, record)


def read_file(path: str | Path, *, skip_bad: bool = False, tally: Tally | None = None) -> Iterator[Record]:
    """The records of `read_rows`."""
    return (row.record for row in read_rows(path, skip_bad=skip_bad, tally=tally))


def holds_dialogues(path: str | Path) -> bool:
    """Whether the first readable row of a file is a dialogue. Raises DataError for the file."""
    values = (value for _, value in _values(Path(path)) if not isinstance(value, DataError))
    return is_dialogue_row(next(values, None))


def read_dialogues(
    path: str | Path, *, skip_bad: bool = False, tally: Tally | None = None
) -> Iterator[Dialogue]:
    """Yield a file's dialogues in order; `skip_bad` and what is raised as in `read_rows`."""
    path = Path(path)
    tally = Tally(path.name) if tally is None else tally
    for _, _, dialogue in _rows(path, parse_dialogue_row, skip_bad, tally):
        tally.records += 1
        tally.turns += len(dialogue.turns)
        tally.distractors += len(dialogue.distractors)
        tally.empty_turns += dialogue.empty
        yield dialogue


def read_files(paths: Iterable[str | Path], *, skip_bad: bool = False) -> tuple[list[list[Row]], list[Tally]]:
    """(the rows of each file, what became of each file's rows). Raises DataError where there is no record."""
    files = [(Path(path), Tally(Path(path).name)) for path in paths]
    rows = [list(read_rows(path, skip_bad=skip_bad, tally=tally)) for path, tally in files]
    if not any(rows):
        raise DataError("there is no readable record in " + ", ".join(str(path) for path, _ in files))
    return rows, [tally for _, tally in files]


def split_of(path: str | Path) -> str:
    """The split that a file's name tells (train, validation, test), else its name without the endings.

    "refusals_train.json" and "train.jsonl.gz" are of train, "dev_x.jsonl" of validation.
    """
    stem = _stem(Path(path))
    words = stem.casefold().replace("-", "_").replace(".", "_").split("_")
    return next((SPLITS[word] for word in words if word in SPLITS), stem)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(".jsonl").removesuffix(".json") or path.name


def _rows(
    path: Path, parse: Callable[[Any], T], skip_bad: bool, tally: Tally
) -> Iterator[tuple[str, Any, T]]:
    """(place, JSON value, what `parse` makes of it); rows are counted, bad ones named or skipped."""
    for place, value in _values(path):
        tally.rows += 1
        try:
            if isinstance(value, DataError):
                raise value
            if _repeats_key(value):
                # Which of two labels is meant can not be known.
                raise DataError("an object repeats a key")
            parsed = parse(value)
        except DataError as error:
            message = f"{path.name}: {place}: {error}"
            if not skip_bad:
                raise DataError(
                    message, hint="such rows can be skipped: --skip-bad, skip_bad=True"
                ) from error
            tally.unreadable.append(message)
            continue
        yield place, value, parsed


def _parse(value: Any) -> Parsed:
    if is_dialogue_row(value):
        raise DataError("a dialogue about a topic, not a record with labels")
    parsed = parse_aegis_row(value) if is_aegis_row(value) else Parsed(parse_row(value))
    if parsed.record is not None:
        try:
            Conversation(parsed.record.prompt, parsed.record.response)
        except InputError as error:  # JSON can spell half a character
            raise DataError(str(error)) from error
    return parsed


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """("row 7" or "line 7", its JSON value or the error reading it gave). Raises DataError for the file."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except OSError as error:
        raise DataError(f"{path}: can not be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}", hint="download it again") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: a Git LFS pointer, not the data", hint="fetch the data with: git lfs pull")
    if data.lstrip()[:1] == b"[":
        return _array(path, data)
    return _lines(data)


def _array(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        values = _loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not a whole JSON array: {error.msg} at line {error.lineno}, column {error.colno}",
            hint="download it again; files with a JSON object a line are read too",
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON: nested too deeply, or a number too long") from error
    return ((f"row {number}", value) for number, value in enumerate(values, 1))


def _lines(data: bytes) -> Iterator[tuple[str, Any]]:
    # By hand, since splitlines would also split at characters that JSON text may hold as they are.
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        value: Any
        try:
            value = _loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            value = DataError(f"not valid UTF-8 at byte {error.start}")
        except json.JSONDecodeError as error:
            value = DataError(f"not valid JSON: {error.msg} at column {error.colno}")
        except (RecursionError, ValueError):
            value = DataError("not valid JSON: nested too deeply, or a number too long")
        yield f"line {number}", value


class _Repeating(dict[str, Any]):
    """An object in which a key stood twice. An error in its stead would fail the whole array."""


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeating(found)


def _repeats_key(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value, _Repeating) or any(map(_repeats_key, value.values()))
    return isinstance(value, list) and any(map(_repeats_key, value))
