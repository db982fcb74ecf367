"""JSON lines (or one array) in, plain or gzip; whole files out: written aside, synced, then renamed."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aegis_edge.errors import InputError
from aegis_edge.label.errors import LabelError

# Far longer than any conversation: what is longer is refused before it fills the memory.
MAX_LINE = 16 << 20


def read_json_lines(path: Path) -> Iterator[tuple[int, Any | InputError]]:
    """Line numbers (from 1, blank lines counted and left out) and the value of each line.

    A file that is one JSON array gives its items, numbered from 1. What is no JSON gives an InputError
    instead of a value: the caller decides whether to go on. Raises LabelError where the file can not be read.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            number = 0
            while data := file.readline(MAX_LINE + 1):
                number += 1
                if len(data) > MAX_LINE:
                    while not data.endswith(b"\n") and (data := file.readline(MAX_LINE)):
                        pass
                    yield number, InputError(f"longer than {MAX_LINE >> 20} MiB")
                elif number == 1 and data.lstrip().startswith(b"["):
                    array = _value(data + file.read())
                    yield from enumerate(array, 1) if isinstance(array, list) else [(1, array)]
                    return
                elif data.strip():
                    yield number, _value(data)
    except (OSError, EOFError, zlib.error) as error:
        raise LabelError(f"{path}: can not be read: {error}") from error


def parse_json(text: str) -> Any:
    """JSON in which no object repeats a key and every number is finite. Raises InputError."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise InputError("not valid JSON: nested too deeply, or a number too long") from error


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write `rows`, gzipped where the name ends in .gz. The file that was there stays until the new one is
    whole. Raises LabelError."""
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # the same rows give the same bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise LabelError(f"{path}: can not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def same_file(a: Path, b: Path) -> bool:
    """Whether two names mean one file, existing or not."""
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def _value(data: bytes) -> Any | InputError:
    try:
        return parse_json(data.rstrip().decode("utf-8"))  # an error is then on the line itself
    except UnicodeDecodeError as error:
        return InputError(f"not valid UTF-8 at byte {error.start}")
    except InputError as error:
        return error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Which of two values is meant can not be known, and another reader of the same text may pick the other.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("not valid JSON: an object repeats a key")
    return found


def _refuse(constant: str) -> None:
    raise InputError(f"not valid JSON: {constant} is no JSON number")
