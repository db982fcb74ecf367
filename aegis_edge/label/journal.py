"""Votes kept as they come: JSON lines, synced to the disk, so that a killed run loses none it was told of.

    {"aegis_edge_votes": 1}
    {"id": ..., "judge": ..., "hash": ..., "label": "safe", "categories": [], "unknown": []}
    {"id": ..., "judge": ..., "hash": ..., "cause": "http", "reason": "HTTP status 500 (5 tries)"}

`hash` covers the text and the judge's settings: a changed text or another model is a new question.
Abstentions are written for whoever reads the file; only votes count as cast.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from aegis_edge.errors import InputError
from aegis_edge.label.errors import JournalError
from aegis_edge.label.files import parse_json
from aegis_edge.label.rows import LABELS, Row
from aegis_edge.label.votes import Abstention, Opinion, Vote

Key = tuple[str, str, str]  # row id, judge, hash
# Without it a file of something else, named by mistake, could be taken for a journal with a torn line.
HEADER = b'{"aegis_edge_votes": 1}\n'


def key_of(row: Row, judge: str, digest: str) -> Key:
    """The key of a judge's vote on a row; `digest` is that of the judge's settings."""
    return row.id, judge, hashlib.sha256(f"{row.digest}{digest}".encode()).hexdigest()


class Journal:
    """An open journal; one process at a time, one thread. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or create it, read its votes, drop a last line that was not written to its end.

        Raises JournalError for a journal that is damaged elsewhere, or in use.
        """
        self.path = path
        self.votes: dict[Key, Vote] = {}
        try:
            new = not path.exists()
            self._file: IO[bytes] = open(path, "a+b")  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise JournalError(f"{path}: can not be opened: {error.strerror}") from error
        try:
            _lock(self._file, path)
            self._read()
            if new:
                _sync_folder(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entries: Iterable[tuple[Key, Opinion]]) -> None:
        """Write opinions; on return they are on the disk. Raises JournalError."""
        lines = []
        for key, opinion in entries:
            lines.append(json.dumps(_to_json(key, opinion), ensure_ascii=False) + "\n")
            if isinstance(opinion, Vote):
                self.votes[key] = opinion
        try:
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JournalError(f"{self.path}: can not be written: {error.strerror}") from error

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        if not data.startswith(HEADER):
            if not HEADER.startswith(data):
                raise JournalError(f"{self.path}: is no journal of votes", hint="name another with --journal")
            self._file.truncate(0)
            self._file.write(HEADER)
            self._file.flush()
            return
        end = len(HEADER)
        lines = data[end:].split(b"\n")
        for number, line in enumerate(lines[:-1], 2):
            try:
                key, opinion = _from_json(parse_json(line.decode("utf-8")))
            except (InputError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
                if number == len(lines) and not lines[-1]:
                    break  # torn as well: blocks of a file can reach the disk in any order
                raise JournalError(
                    f"{self.path}:{number}: no line of a journal",
                    hint="mend or remove that line; what it held is asked again",
                ) from error
            if isinstance(opinion, Vote):
                self.votes[key] = opinion
            end += len(line) + 1
        self._file.truncate(end)


def _to_json(key: Key, opinion: Opinion) -> dict[str, Any]:
    name = dict(zip(("id", "judge", "hash"), key, strict=True))
    if isinstance(opinion, Vote):
        return {
            **name,
            "label": opinion.label,
            "categories": list(opinion.categories),
            "unknown": list(opinion.unknown),
        }
    return {**name, "cause": opinion.cause, "reason": opinion.reason}


def _from_json(line: dict[str, Any]) -> tuple[Key, Opinion]:
    key = (line["id"], line["judge"], line["hash"])
    if not all(isinstance(part, str) for part in key):
        raise TypeError
    if "cause" in line:
        return key, Abstention(line["cause"], line["reason"])
    if line["label"] not in LABELS:
        raise ValueError
    names = (*line["categories"], *line["unknown"])
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return key, Vote(line["label"], tuple(line["categories"]), tuple(line["unknown"]))


def _lock(file: IO[bytes], path: Path) -> None:
    """Held until the file is closed, also by a kill. Two runs at once would ask (and pay) twice."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalError(
            f"{path}: another run is using it", hint="wait for it, or take --journal"
        ) from error


def _sync_folder(path: Path) -> None:
    """The name of a new file is on the disk only when its folder is."""
    if os.name != "posix":
        return
    number = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
