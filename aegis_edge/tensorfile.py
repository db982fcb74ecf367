"""A strict reader of safetensors files, tensor by tensor.

Stricter than the format: no gaps, no duplicate names, no unknown types, a bounded header. The project's own
reader rather than the safetensors library's numpy one, because that has no bf16 and does not see duplicate
names; the whole format is one JSON header.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aegis_edge.errors import ArtifactError

MAX_HEADER = 16 << 20  # bytes; a 1,000-layer guard has a header of about 1 MB
MAX_JSON_DEPTH = 24
# bf16 has no numpy type: its bits are handed on as uint16.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}


@dataclass(frozen=True)
class TensorInfo:
    """dtype as safetensors names it (F32, BF16, I8, U8), shape, and the bytes' place in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """An open safetensors file whose header has been checked. The file descriptor stays open, so that what
    was checked is what is read even when another artefact is renamed into this one's place. Reading is safe
    from several threads."""

    _descriptor = -1  # also where opening failed

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError unless header and length are exactly right."""
        self.path = path
        self._descriptor, self.bytes = open_regular(path)
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; arrays already read stay valid. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def sha256(self) -> str:
        """Hex SHA-256 of the file that is open, whatever stands at its path by now. Raises ArtifactError."""
        return sha256(self._descriptor, self.bytes, self.path.name)

    def status(self) -> os.stat_result:
        """The opened file's owner, mode and times."""
        return os.fstat(self._descriptor)

    def read(self, name: str) -> np.ndarray:
        """A fresh array of one tensor (bf16 as uint16)."""
        info = self._info(name)
        data = np.empty(info.nbytes, np.uint8)
        view, done = data.data, 0
        while done < info.nbytes:
            count = os.preadv(self._descriptor, [view[done:]], info.offset + done)
            if count == 0:
                raise ArtifactError(
                    f"{self.path.name}: {name} ends early; the file was changed while it was read"
                )
            done += count
        return data.view(_DTYPES[info.dtype]).reshape(info.shape)

    def map(self, name: str) -> np.ndarray:
        """One tensor mapped from the file, read-only (bf16 as uint16)."""
        info = self._info(name)
        whole = mmap.mmap(self._descriptor, self.bytes, access=mmap.ACCESS_READ)
        count = info.nbytes // _DTYPES[info.dtype].itemsize
        return np.frombuffer(whole, _DTYPES[info.dtype], count, info.offset).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        if self._descriptor < 0:
            raise ArtifactError(f"{self.path.name} is closed")
        if name not in self.tensors:
            raise ArtifactError(f"{self.path.name}: tensor {name} is missing")
        return self.tensors[name]

    def _read_header(self) -> dict[str, TensorInfo]:
        start = os.pread(self._descriptor, 8, 0)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size < 2 or size > min(MAX_HEADER, self.bytes - 8):
            raise ArtifactError(f"{self.path.name}: header of {size} bytes in a file of {self.bytes}")
        header = parse_json(os.pread(self._descriptor, size, 8), self.path.name)
        header.pop("__metadata__", None)
        infos = {name: self._parse_info(name, entry, 8 + size) for name, entry in header.items()}
        end = 8 + size
        for name, info in sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if info.offset != end:
                raise ArtifactError(f"{self.path.name}: {name} starts at byte {info.offset}, expected {end}")
            end += info.nbytes
        if end != self.bytes:
            raise ArtifactError(f"{self.path.name}: {self.bytes} bytes long, its header accounts for {end}")
        return infos

    def _parse_info(self, name: str, entry: Any, base: int) -> TensorInfo:
        where = f"{self.path.name}: {name!r}"
        if not name or not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ArtifactError(f"{where} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ArtifactError(f"{where}: unknown type {dtype!r}")
        if not _is_sizes(shape) or len(shape) > 8:
            raise ArtifactError(f"{where}: bad shape {shape!r}")
        if not _is_sizes(offsets) or len(offsets) != 2:
            raise ArtifactError(f"{where}: bad data_offsets {offsets!r}")
        nbytes = math.prod(shape) * _DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != nbytes:
            raise ArtifactError(
                f"{where}: {offsets[1] - offsets[0]} bytes for shape {shape}, expected {nbytes}"
            )
        if base + offsets[1] > self.bytes:
            raise ArtifactError(f"{where} ends beyond the file")
        return TensorInfo(dtype, tuple(shape), base + offsets[0], nbytes)


def _is_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def open_regular(path: Path) -> tuple[int, int]:
    """(descriptor, bytes) of a regular file that is no symbolic link; raises ArtifactError otherwise."""
    try:
        # Non-blocking: opening a FIFO would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.name} is missing", hint="export the guard again") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} can not be opened: {error}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path.name} is not a regular file")
    return descriptor, found.st_size


def sha256(descriptor: int, size: int, name: str) -> str:
    """Hex SHA-256 of an open file of `size` bytes; raises ArtifactError where it has become shorter.

    One call over a mapping, so that the GIL is released once for all of it: read in pieces, it would wait for
    the GIL at each while the tokenizer, whose parser keeps it, is loaded beside it.
    """
    if size == 0:  # which can not be mapped
        return hashlib.sha256().hexdigest()
    try:
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as whole:
            return hashlib.sha256(whole).hexdigest()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{name}: can not be hashed: {error}") from error


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises ArtifactError otherwise."""
    descriptor, size = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if size > limit:
            raise ArtifactError(f"{path.name}: {size} bytes, at most {limit} allowed")
        return file.read(limit + 1)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object from hostile bytes: UTF-8, no duplicate keys, no NaN, bounded depth; raises ArtifactError
    naming the file."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        # Python's parser bounds its own recursion far above what any of these files needs.
        _check_depth(value, MAX_JSON_DEPTH)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactError(f"{name}: not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{name}: expected a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} appears twice")
    return table


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RecursionError
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        if isinstance(item, (dict, list)):
            _check_depth(item, left - 1)
