"""JSON lines to conversations, read ahead so that a batch is whatever has arrived."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from aegis_edge.conversation import Conversation, Dialogue
from aegis_edge.errors import AegisError, InputError

BATCH = 64  # lines scored together at most


@dataclass(frozen=True)
class Line:
    """One line of input: a conversation, or the error that reading it gave.

    number  counted from 1, blank lines included
    end     bytes of input up to the line's end
    label   {"id": ...} where the line had one
    """

    number: int
    end: int
    conversation: Conversation | Dialogue | None = None
    error: AegisError | None = None
    label: dict[str, Any] = field(default_factory=dict)


def batches(file: IO[bytes], max_bytes: int) -> Iterator[list[Line]]:
    """Lists of at most BATCH lines, in order. Blank lines are left out, longer ones than `max_bytes` errors.

    A list is handed over as soon as no further line is waiting: a slow writer is answered line by line, a
    file is read in full batches. Raises InputError where the file can not be read.
    """
    arrived: queue.Queue[Line | BaseException | None] = queue.Queue(4 * BATCH)

    def read() -> None:
        try:
            for line in read_lines(file, max_bytes):
                arrived.put(line)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, name="aegis-edge-reader", daemon=True).start()
    batch: list[Line] = []
    while True:
        try:
            item = arrived.get(block=not batch)
        except queue.Empty:
            yield batch
            batch = []
            continue
        if isinstance(item, Line):
            batch.append(item)
            if len(batch) < BATCH:
                continue
        if batch:
            yield batch
            batch = []
        if isinstance(item, OSError):
            raise InputError(f"reading stopped: {item.strerror}") from item
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return


def read_lines(file: IO[bytes], max_bytes: int) -> Iterator[Line]:
    """One by one; see `batches`."""
    number = end = 0
    while data := file.readline(max_bytes + 1):
        number += 1
        end += len(data)
        if len(data) > max_bytes:
            while not data.endswith(b"\n") and (data := file.readline(max_bytes)):
                end += len(data)
            yield Line(number, end, error=InputError(f"longer than {max_bytes >> 20} MiB"))
        elif data.strip():
            label: dict[str, Any] = {}
            try:
                yield Line(number, end, _conversation(data, label), None, label)
            except AegisError as error:
                yield Line(number, end, None, error, label)


def _conversation(data: bytes, label: dict[str, Any]) -> Conversation | Dialogue:
    """A line's conversation; its id goes into `label`. Raises InputError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise InputError("not valid JSON: nested too deeply, or a number too long") from error
    if isinstance(value, str):
        return Conversation(value)
    if not isinstance(value, dict):
        raise InputError("neither a string nor an object", hint='write {"prompt": "..."}')
    if "id" in value:
        label["id"] = value["id"]
    if "messages" in value:
        if "prompt" in value or "response" in value or not isinstance(value["messages"], list):
            raise InputError('"messages" is a list, and stands for "prompt" and "response"')
        return Dialogue.of(value["messages"])
    if "prompt" not in value:
        raise InputError('the object has no "prompt"', hint='write {"prompt": "...", "response": "..."}')
    return Conversation(value["prompt"], value.get("response"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Which of two prompts is meant can not be known, and another reader of the same line may pick the other.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("not valid JSON: an object repeats a key")
    return found


def _refuse(constant: str) -> None:
    raise InputError(f"not valid JSON: {constant} is no JSON number")
