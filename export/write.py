"""Writing an artefact folder: all or nothing.

Everything goes into a temporary folder beside the target, is synced to disk, and only then takes the target's
place. Whoever opens the target at any moment, power cut included, finds the old artefact or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from aegis_edge.errors import ExportError
from aegis_edge.export.base import file_sha256

MANIFEST = "aegis.json"
MARKS = (MANIFEST, "aegis_head.json")  # a folder with one of them was written by an export


def refuse_existing(target: Path, force: bool) -> None:
    """Raise ExportError where `target` is in the way: anything without `force`; with it, anything that is no
    artefact of ours."""
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise ExportError(f"{target} exists already", hint="choose another --out, or replace it with --force")
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if target.is_symlink() or not (is_empty_folder or any((target / mark).is_file() for mark in MARKS)):
        raise ExportError(
            f"{target} is not an artefact folder; --force replaces only those", hint="choose another --out"
        )


@contextmanager
def atomic_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; on a good end it becomes `target`, on an error it vanishes and `target`
    is as it was."""
    target = target.absolute()
    refuse_existing(target, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    except OSError as error:
        raise ExportError(
            f"can not write beside {target}: {error.strerror}", hint="choose another --out"
        ) from error
    try:
        yield fresh
        fresh.chmod(0o755)
        _sync(fresh)
        refuse_existing(target, force)
        _swap(fresh, target)
        _sync_path(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, target: Path) -> None:
    """Put `fresh` in `target`'s place. rename() does not replace a folder that has files, so the old one
    steps aside first, and back if the new one can not take its place."""
    if not target.exists():
        fresh.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        target.rename(aside / target.name)
        try:
            fresh.rename(target)
        except BaseException:
            (aside / target.name).rename(target)
            raise
    finally:
        # The old artefact goes only when the new one stands in its place.
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        _sync_path(file)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of contiguous tensors."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"}
    )
    path.chmod(0o644)  # the library makes its files readable by their owner alone


def save_policy(path: Path, k: np.ndarray, v: np.ndarray) -> None:
    """policy.safetensors from the runtime's k and v (uint16 arrays that hold bf16)."""
    import torch

    save_tensors(
        path, {"k": torch.from_numpy(k).view(torch.bfloat16), "v": torch.from_numpy(v).view(torch.bfloat16)}
    )


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write aegis.json with SHA-256 and size of every file that `folder` holds by now; returns what was
    written."""
    files = {
        file.name: {"sha256": file_sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST
    }
    complete = {**manifest, "files": files}
    text = json.dumps(complete, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return complete
