"""An artefact folder: open, verify, describe. Nothing in it is trusted before it has been checked.

A wrong guard is worse than none, so every doubt is an ArtifactError: a file that is not listed, a hash that
differs, a tensor of another shape, a scale that is zero. docs/artifact.md is the format.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aegis_edge.errors import ArtifactError
from aegis_edge.features import Features
from aegis_edge.manifest import POLICY, check_manifest
from aegis_edge.scoring.vocabulary import Vocabulary
from aegis_edge.tensorfile import TensorFile, TensorInfo, open_regular, parse_json, read_small, sha256

MANIFEST = "aegis.json"
MODEL = "model.safetensors"
PROJECTIONS = ("qkv", "o", "gate_up", "down")
GROUP = 32
_GROUP_MAX = 18
_MAX_MANIFEST = 4 << 20
_MAX_TOKENIZER = 64 << 20
_CHUNK = 1 << 20  # bytes looked at together in value checks: they stay in the L2 cache


class Artifact:
    """An opened artefact. Immutable; safe to read from several threads. The weights are read from disk when
    asked for."""

    def __init__(
        self, path: Path, manifest: dict[str, Any], model: TensorFile, policy: TensorFile | None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._model = model
        self._policy = policy

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = True) -> Artifact:
        """Open a folder written by `aegis-edge export`; raises ArtifactError for anything that is not exactly
        what its manifest says.

        verify=False leaves the SHA-256 of the files (0.1 s for the 135M guard) to `verify`, nothing else.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ArtifactError(
                f"{folder} is not an artefact folder", hint="make one with: aegis-edge export --out DIR"
            )
        manifest = parse_json(read_small(folder / MANIFEST, _MAX_MANIFEST), MANIFEST)
        check_manifest(manifest)
        _check_listing(folder, manifest["files"])
        for name, entry in manifest["files"].items():
            _check_file(folder / name, entry, verify)
        _check_config(folder, manifest["model"])
        model = TensorFile(folder / MODEL)
        _check_tensors(model, manifest)
        policy = TensorFile(folder / POLICY) if POLICY in manifest["files"] else None
        if policy is not None:
            _check_policy(policy, manifest)
        return cls(folder, manifest, model, policy)

    def verify(self) -> None:
        """Compare every file with its SHA-256; raises ArtifactError. Of the tensors it is the files that were
        opened, which are those that are read. Releases the GIL while it reads."""
        opened = {MODEL: self._model, POLICY: self._policy}
        for name, entry in self.manifest["files"].items():
            file = opened.get(name)
            if file is None:
                _check_file(self.path / name, entry, verify=True)
            else:
                _check_digest(name, file.sha256(), entry)

    def tensor_names(self) -> tuple[str, ...]:
        """Names in model.safetensors."""
        return tuple(self._model.tensors)

    def tensor(self, name: str) -> np.ndarray:
        """One tensor as a fresh array (bf16 as uint16); raises ArtifactError where a value is outside its
        range."""
        array = self._model.read(name)
        _check_values(name, self._model.tensors[name], array)
        return array

    def map_tensor(self, name: str) -> np.ndarray:
        """One tensor mapped from the file, read-only, its values unchecked: for the embedding, of which a
        check reads a few rows. A NaN there makes logits that are no numbers, which the decision refuses."""
        return self._model.map(name)

    def vocabulary(self) -> Vocabulary:
        """The whole LM head, for label mass; raises ArtifactError where the labels are no tokens of it."""
        cap = Features.of(self.manifest["model"]).logit_softcap
        if "lm_head.weight" in self._model.tensors:
            return Vocabulary(self.map_tensor("lm_head.weight"), None, cap)
        if "unembed.weight" in self._model.tensors:
            return Vocabulary(self.map_tensor("embed_tokens.weight"), self.tensor("unembed.weight"), cap)
        raise ArtifactError(
            "label mass: this guard's labels are trained rows, which have no share of the vocabulary",
            hint="it exists for guards whose labels are tokens, such as a base exported without an adapter",
        )

    def policy_kv(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The root's keys and values, uint16 (bf16) arrays mapped from the file; None where the artefact has
        none.

        k [L, Hkv, ceil(P/16), d/2, 16, 2] and v [L, Hkv, ceil(P/2), d, 2] for a root of P tokens.
        """
        if self._policy is None:
            return None
        k, v = self._policy.map("k"), self._policy.map("v")
        _check_values("k", self._policy.tensors["k"], k)
        _check_values("v", self._policy.tensors["v"], v)
        return k, v

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json."""
        return read_small(self.path / "tokenizer.json", _MAX_TOKENIZER).decode("utf-8")

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json, parsed, its ids checked against the embedding's rows."""
        spec = parse_json(read_small(self.path / "tokenizer.json", _MAX_TOKENIZER), "tokenizer.json")
        check_vocabulary(spec, self.manifest["model"]["vocab"])
        return spec

    def check_values(self) -> None:
        """Read everything once and check every value; raises ArtifactError. Loading checks each tensor as it
        goes."""
        for name in self.tensor_names():
            self.tensor(name)
        self.policy_kv()
        self.tokenizer  # noqa: B018  (parsing it is the check)

    def describe(self) -> dict[str, Any]:
        """What `aegis-edge inspect` shows: JSON-ready, sizes in bytes."""
        manifest = self.manifest
        files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        kinds: dict[str, int] = {}
        for info in self._model.tensors.values():
            kinds[info.dtype] = kinds.get(info.dtype, 0) + info.nbytes
        return {
            "path": str(self.path),
            "format_version": manifest["format_version"],
            "family": manifest["family"]["name"],
            "model": manifest["model"],
            "quantization": manifest["quantization"],
            "head": {"kind": manifest["head"]["kind"], "rows": manifest["head"]["rows"]},
            "policy": manifest["policy"],
            "policy_cached": self._policy is not None,
            "calibration": manifest["calibration"],
            "provenance": manifest["provenance"],
            "files": files,
            "bytes": sum(files.values()),
            "weight_bytes": kinds,
        }


def check_vocabulary(tokenizer: dict[str, Any], vocab: int) -> None:
    """Raise ArtifactError unless every id of a parsed tokenizer.json is unique and below `vocab`, the
    embedding's rows."""
    model = tokenizer.get("model")
    table = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(table, list):  # Unigram: the position is the id
        ids: list[Any] = list(range(len(table)))
    elif isinstance(table, dict):
        ids = list(table.values())
    else:
        raise ArtifactError("tokenizer.json: no model.vocab")
    added = tokenizer.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ArtifactError("tokenizer.json: bad added_tokens")
    extra = [token.get("id") for token in added]
    if not all(type(i) is int and 0 <= i < vocab for i in (*ids, *extra)):
        raise ArtifactError(f"tokenizer.json: a token id is not below {vocab}, the number of embeddings")
    if len(set(ids)) != len(ids) or len(set(extra)) != len(extra):
        raise ArtifactError("tokenizer.json: two tokens share an id")


def _check_listing(folder: Path, files: dict[str, Any]) -> None:
    found = {entry.name for entry in os.scandir(folder)}
    extra = sorted(found - set(files) - {MANIFEST})
    if extra:
        raise ArtifactError(
            f"{extra[0]} is in the folder but not in {MANIFEST}", hint="keep other files elsewhere"
        )


def _check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    descriptor, size = open_regular(path)
    with os.fdopen(descriptor, "rb", buffering=0):
        if size != entry["bytes"]:
            raise ArtifactError(
                f"{path.name}: {size} bytes, its manifest says {entry['bytes']}",
                hint="the file is incomplete or altered",
            )
        if verify:
            _check_digest(path.name, sha256(descriptor, size, path.name), entry)


def _check_digest(name: str, digest: str, entry: dict[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise ArtifactError(
            f"{name}: its SHA-256 is not the manifest's", hint="the file is damaged or altered; export again"
        )


def _check_config(folder: Path, model: dict[str, Any]) -> None:
    """config.json is for other tools; one that contradicts the manifest would make them run another model."""
    config = parse_json(read_small(folder / "config.json", _MAX_MANIFEST), "config.json")
    same = {
        "hidden_size": "hidden",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "intermediate",
        "vocab_size": "vocab",
    }
    for theirs, ours in same.items():
        if config.get(theirs) != model[ours]:
            raise ArtifactError(
                f"config.json: {theirs} is {config.get(theirs)!r}, {MANIFEST} says {model[ours]}"
            )


def _expected(manifest: dict[str, Any], file: TensorFile) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every tensor the model must have, and of the optional ones that are present."""
    model, scheme, present = manifest["model"], manifest["quantization"]["scheme"], set(file.tensors)
    features = Features.of(model)
    hidden, inner = model["hidden"], model["heads"] * model["head_dim"]
    rows = len(manifest["head"]["rows"])
    shapes = {
        "qkv": (inner + 2 * model["kv_heads"] * model["head_dim"], hidden),
        "o": (hidden, inner),
        "gate_up": (2 * model["intermediate"], hidden),
        "down": (hidden, model["intermediate"]),
    }
    yield "embed_tokens.weight", "BF16", (model["vocab"], hidden)
    yield "head.weight", "F32", (rows, hidden)
    yield "head.bias", "F32", (rows,)
    if "unembed.weight" in present:
        yield "unembed.weight", "F32", (hidden, hidden)
    if "lm_head.weight" in present:
        yield "lm_head.weight", "BF16", (model["vocab"], hidden)
    if features.rope_of:
        yield "rope.inverse_frequency", "F32", (len(features.rope_factors), model["head_dim"] // 2)
    norms = ["final_norm.weight"]
    for i in range(model["layers"]):
        norms += [f"layers.{i}.input_norm.weight", f"layers.{i}.post_norm.weight"]
        # Absent, these would not be norms of ones but none at all: they are asked for by name.
        for name, has, width in (
            ("q_norm", features.qk_norm, model["head_dim"]),
            ("k_norm", features.qk_norm, model["head_dim"]),
            ("attention_out_norm", features.out_norms, hidden),
            ("mlp_out_norm", features.out_norms, hidden),
        ):
            if has:
                yield f"layers.{i}.{name}.weight", "F32", (width,)
        for name in PROJECTIONS:
            n, k = shapes[name]
            prefix = f"layers.{i}.{name}"
            # A layer that the scheme would hurt may be stored with more bits: what is there says how.
            dtype = file.tensors[f"{prefix}.weight"].dtype if f"{prefix}.weight" in present else ""
            if scheme == "bf16" or dtype == "BF16":
                yield f"{prefix}.weight", "BF16", (n, k)
                continue
            yield f"{prefix}.scale", "F32", (n,)
            if scheme == "w4a8" and dtype == "U8":
                yield f"{prefix}.weight", "U8", (n, k // 2)
                yield f"{prefix}.group_scale", "U8", (n, k // GROUP)
            else:
                yield f"{prefix}.weight", "I8", (n, k)
        if f"layers.{i}.qkv.bias" in present:
            yield f"layers.{i}.qkv.bias", "F32", (shapes["qkv"][0],)
    for name in norms:
        if name in present or scheme == "bf16":
            yield name, "F32", (hidden,)


def _check_tensors(file: TensorFile, manifest: dict[str, Any]) -> None:
    _check_against(file, {name: (dtype, shape) for name, dtype, shape in _expected(manifest, file)})


def _check_policy(file: TensorFile, manifest: dict[str, Any]) -> None:
    model, tokens = manifest["model"], manifest["policy_kv"]["tokens"]
    heads, d = (model["layers"], model["kv_heads"]), model["head_dim"]
    k, v = (*heads, -(-tokens // 16), d // 2, 16, 2), (*heads, -(-tokens // 2), d, 2)
    _check_against(file, {"k": ("BF16", k), "v": ("BF16", v)})


def _check_against(file: TensorFile, expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    for name, (dtype, shape) in expected.items():
        info = file.tensors.get(name)
        if info is None:
            raise ArtifactError(f"{file.path.name}: tensor {name} is missing")
        if (info.dtype, info.shape) != (dtype, shape):
            raise ArtifactError(
                f"{file.path.name}: {name} is {info.dtype} {list(info.shape)}, expected {dtype} {list(shape)}"
            )
    extra = sorted(set(file.tensors) - set(expected))
    if extra:
        raise ArtifactError(f"{file.path.name}: unknown tensor {extra[0]}")


def _check_values(name: str, info: TensorInfo, array: np.ndarray) -> None:
    flat = array.reshape(-1)
    step = _CHUNK // flat.itemsize
    is_good = _RANGES[name.rsplit(".", 1)[-1]] if info.dtype in ("F32", "U8") else _RANGES[info.dtype]
    for start in range(0, len(flat), step):
        if not is_good(flat[start : start + step]):
            raise ArtifactError(f"{name}: a value is not finite or outside its range")


def _is_finite_bf16(bits: np.ndarray) -> bool:
    # All exponent bits set = infinity or NaN.
    return bool((bits & 0x7FFF).max() < 0x7F80)


def _is_finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


# By dtype for I8 and BF16, by the last part of the name for the rest. U8 weights are nibble pairs: 0 would
# stand for -8.
_RANGES = {
    "I8": lambda w: w.min() > -128,
    "BF16": _is_finite_bf16,
    "scale": lambda s: _is_finite(s) and s.min() > 0,
    "group_scale": lambda g: g.min() >= 1 and g.max() <= _GROUP_MAX,
    "bias": _is_finite,
    "inverse_frequency": lambda f: _is_finite(f) and f.min() >= 0,
    "weight": lambda w: _is_finite(w) if w.dtype == np.float32 else w.min() >= 16 and (w & 15).min() >= 1,
}
