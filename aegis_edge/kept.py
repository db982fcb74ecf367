"""Keys and values of policies that are not the artefact's own, kept from one process to the next.

One file a policy, beside the artefact (`guard.policies/`), or in the user's cache where that can not be
written. A file's name is the hash of all that its content depends on: the weights' and the tokenizer's
hashes, the model's shape and quantisation, the compiled runtime and its instruction set, and the policy's
ids. What is read was written by this user, has the shapes of this model, and hashes to what stands in it;
everything else is computed anew. A cache never fails a check: what can not be read or written is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from aegis_edge.artifact import MODEL, Artifact
from aegis_edge.errors import ArtifactError
from aegis_edge.places import cache_folder
from aegis_edge.scoring import IdArray
from aegis_edge.tensorfile import TensorFile

FILES_KEPT = 32  # of one folder, the latest; a policy of 150 tokens takes 3.5 MB in the 135M model
_VERSION = "aegis-edge policy 1"
Kv = tuple[np.ndarray, np.ndarray]


class Kept:
    """Policies of one artefact. Safe to use from several threads and processes."""

    def __init__(self, artifact: Artifact) -> None:
        self._manifest = artifact.manifest
        path = artifact.path.absolute()
        self.folders = [path.with_name(f"{path.name}.policies")]
        with contextlib.suppress(RuntimeError):  # a user without a home
            self.folders.append(cache_folder() / "policies")

    def name(self, root: IdArray, isa: str) -> str:
        """Of the file that holds this policy's keys and values."""
        manifest = self._manifest
        about = {
            "version": _VERSION,
            "weights": manifest["files"][MODEL]["sha256"],
            "tokenizer": manifest["files"]["tokenizer.json"]["sha256"],
            "model": manifest["model"],
            "quantization": manifest["quantization"],
            "runtime": _runtime(),
            "isa": isa,
            "policy": root.tolist(),
        }
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
        return f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def read(self, root: IdArray, isa: str) -> Kv | None:
        """k and v, uint16 (bf16) as in policy.safetensors; None where nothing can be trusted."""
        name = self.name(root, isa)
        for folder in self.folders:
            with contextlib.suppress(ArtifactError, OSError):
                return self._checked(folder / name, len(root))
        return None

    def write(self, root: IdArray, isa: str, kv: Kv) -> None:
        """Keep k and v for later processes, in the first folder that takes them."""
        name = self.name(root, isa)
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _replace(folder / name, _pieces(name, kv))
                _prune(folder)
                return

    def _checked(self, path: Path, tokens: int) -> Kv:
        """Read and verified; raises ArtifactError, OSError."""
        file = TensorFile(path)
        try:
            status = file.status()
            if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
                raise ArtifactError(f"{path.name} is not this user's alone")
            found = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
            shapes = _shapes(self._manifest["model"], tokens)
            if found != {"k": ("BF16", shapes[0]), "v": ("BF16", shapes[1]), "sha256": ("U8", (32,))}:
                raise ArtifactError(f"{path.name}: other tensors than this policy has")
            k, v = file.read("k"), file.read("v")
            if file.read("sha256").tobytes() != _digest(path.name, (k, v)):
                raise ArtifactError(f"{path.name}: its content is not what was written")
            return k, v
        finally:
            file.close()


@lru_cache(maxsize=1)
def _runtime() -> str:
    """The hash of the compiled runtime: another build may round otherwise."""
    from aegis_edge import _native

    with open(_native.__file__, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shapes(model: dict[str, int], tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    heads, d = (model["layers"], model["kv_heads"]), model["head_dim"]
    return (*heads, -(-tokens // 16), d // 2, 16, 2), (*heads, -(-tokens // 2), d, 2)


def _digest(name: str, kv: Kv) -> bytes:
    """SHA-256 of the file's name, k and v: an entry put under another name is not taken for it."""
    digest = hashlib.sha256(name.encode())
    for array in kv:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _pieces(name: str, kv: Kv) -> Iterator[bytes]:
    """The bytes of the safetensors file."""
    arrays = [np.ascontiguousarray(array, np.uint16) for array in kv]
    digest = _digest(name, (arrays[0], arrays[1]))
    header, end = {}, 0
    for key, dtype, shape, size in (
        *((key, "BF16", list(array.shape), array.nbytes) for key, array in zip("kv", arrays, strict=True)),
        ("sha256", "U8", [32], 32),
    ):
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from (array.tobytes() for array in arrays)
    yield digest


def _replace(path: Path, pieces: Iterator[bytes]) -> None:
    """Write a file whole or not at all; raises OSError."""
    descriptor, fresh = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for file in files[:-FILES_KEPT]:
        file.unlink(missing_ok=True)
