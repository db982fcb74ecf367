"""Ways to spoil an artefact. Each edits a good folder in place; `seal` makes the hashes agree again
afterwards, as somebody would who wants a bad artefact opened."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aegis_edge.artifact import Artifact

Edit = Callable[[Path], None]
MODEL, MANIFEST = "model.safetensors", "aegis.json"
QKV = "layers.0.qkv"


def seal(folder: Path) -> None:
    """Bring sizes and hashes in aegis.json up to date with the files it lists."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def sealed(edit: Edit) -> Edit:
    """`edit`, then `seal`."""

    def both(folder: Path) -> None:
        edit(folder)
        seal(folder)

    return both


def cut(name: str, end: int) -> Edit:
    """Keep bytes [0, end) of a file; a negative end counts from the back."""
    return lambda folder: _bytes(folder / name, lambda data: data[:end])


def flip(name: str, position: int) -> Edit:
    """Flip the lowest bit of one byte."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return lambda folder: _bytes(folder / name, change)


def replace(name: str, old: bytes, new: bytes) -> Edit:
    """Replace bytes that occur in a file."""

    def edit(folder: Path) -> None:
        data = (folder / name).read_bytes()
        assert old in data
        (folder / name).write_bytes(data.replace(old, new, 1))

    return edit


def manifest(path: str, value: Any) -> Edit:
    """Set (or, with ..., delete) what stands at a path such as "model/hidden" in aegis.json."""
    return json_file(MANIFEST, path, value)


def json_file(name: str, path: str, value: Any) -> Edit:
    """The same in any JSON file."""

    def edit(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        *parents, last = path.split("/")
        table = data
        for key in parents:
            table = table[int(key)] if isinstance(table, list) else table[key]
        if value is ...:
            del table[last]
        elif isinstance(table, list):
            table[int(last)] = value
        else:
            table[last] = value
        (folder / name).write_text(json.dumps(data))

    return edit


def file_name(name: str) -> Edit:
    """List README-like content under a hostile name."""
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}

    def edit(folder: Path) -> None:
        data = json.loads((folder / MANIFEST).read_text())
        data["files"][name] = entry
        (folder / MANIFEST).write_text(json.dumps(data))

    return edit


def header(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Edit the JSON header of model.safetensors in place or by returning another; the data stay."""

    def edit(folder: Path) -> None:
        head, data = _split(folder)
        changed = change(head)
        _join(folder, json.dumps(head if changed is None else changed).encode(), data)

    return edit


def raw_header(text: bytes, size: int | None = None) -> Edit:
    """Put another header, and perhaps a wrong size of it, before the data."""
    return lambda folder: _join(folder, text, _split(folder)[1], size)


def entry(name: str, key: str, value: Any) -> Edit:
    """Set one field of one tensor in the header."""
    return header(lambda head: head[name].__setitem__(key, value))


def values(name: str, dtype: str, index: int, value: float) -> Edit:
    """Set one element of one tensor."""

    def edit(folder: Path) -> None:
        head, data = _split(folder)
        start, end = head[name]["data_offsets"]
        array = np.frombuffer(data[start:end], dtype).copy()
        array[index] = value
        _join(folder, json.dumps(head).encode(), data[:start] + array.tobytes() + data[end:])

    return edit


def resized(name: str, shape: list[int]) -> Edit:
    """Give one tensor another shape and the bytes that go with it: a well-formed file of another model."""

    def edit(folder: Path) -> None:
        head, data = _split(folder)
        start, end = head[name]["data_offsets"]
        size = (end - start) // int(np.prod(head[name]["shape"])) * int(np.prod(shape))
        parts, position = {}, 0
        for other, info in sorted(tensors(head).items(), key=lambda item: item[1]["data_offsets"]):
            a, b = info["data_offsets"]
            piece = bytes(size) if other == name else data[a:b]
            info["data_offsets"] = [position, position + len(piece)]
            parts[other], position = piece, position + len(piece)
        head[name]["shape"] = shape
        _join(folder, json.dumps(head).encode(), b"".join(parts.values()))

    return edit


def tensors(head: dict[str, Any]) -> dict[str, Any]:
    """The header without its metadata."""
    return {name: info for name, info in head.items() if name != "__metadata__"}


def _bytes(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def _split(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / MODEL).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _join(folder: Path, head: bytes, data: bytes, size: int | None = None) -> None:
    (folder / MODEL).write_bytes(struct.pack("<Q", len(head) if size is None else size) + head + data)


def spoilt(artefacts: dict[str, Path], tmp_path: Path, edit: Edit, scheme: str = "w8a8") -> Path:
    folder = tmp_path / "guard"
    shutil.copytree(artefacts[scheme], folder)
    edit(folder)
    return folder


def load(folder: Path) -> None:
    """What a runtime does with an artefact: open it and read everything."""
    Artifact.open(folder).check_values()
