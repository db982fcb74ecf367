"""The checks of aegis.json: every number that later sizes an array or steers the runtime lies in its range.

docs/artifact.md describes the sections. Values the runtime does not depend on (provenance, card texts) are
passed through.
"""

from __future__ import annotations

import math
import re
from typing import Any

from aegis_edge.errors import ArtifactError
from aegis_edge.families.plan import Plan
from aegis_edge.features import Features

FORMAT_VERSION = 1
SCHEMES = ("w8a8", "w4a8", "bf16")
POLICY = "policy.safetensors"
REQUIRED_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECTIONS = {
    "family": dict,
    "policy": dict,
    "model": dict,
    "quantization": dict,
    "head": dict,
    "calibration": dict,
    "provenance": dict,
    "files": dict,
}
# Inclusive limits: a Llama of 100 B parameters fits; products of any two stay far below 2^63.
_DIMS = {
    "layers": (1, 256),
    "hidden": (32, 16384),
    "heads": (1, 256),
    "kv_heads": (1, 256),
    "head_dim": (16, 256),
    "intermediate": (32, 65536),
    "vocab": (1, 1 << 20),
    "context": (1, 1 << 20),
}
_ROPE_FACTORS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise ArtifactError unless aegis.json is of a version and content that this package can run."""
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise _bad(
            f"format_version {version!r}, this version of aegis-edge reads {FORMAT_VERSION}",
            "export the guard again with this version, or install the version that wrote it",
        )
    for name, kind in _SECTIONS.items():
        if not isinstance(manifest.get(name), kind):
            raise _bad(f"section {name!r} is missing or not an object")
    _check_files(manifest["files"])
    model = manifest["model"]
    _check_model(model)
    _check_quantization(manifest["quantization"], model)
    _check_head(manifest["head"], model["vocab"])
    _check_calibration(manifest["calibration"])
    plan = _check_family(manifest["family"], manifest["head"]["rows"], model)
    _check_policy_kv(manifest, len(plan.root))


def _bad(message: str, hint: str | None = None) -> ArtifactError:
    return ArtifactError(f"aegis.json: {message}", hint=hint)


def _check_files(files: dict[str, Any]) -> None:
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or name == "aegis.json":
            raise _bad(f"file name {name!r} is not allowed")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise _bad(f"files[{name!r}] needs sha256 and bytes")
        if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
            raise _bad(f"files[{name!r}]: not a SHA-256")
        if type(entry["bytes"]) is not int or entry["bytes"] < 0:
            raise _bad(f"files[{name!r}]: bad size {entry['bytes']!r}")
    for name in REQUIRED_FILES:
        if name not in files:
            raise _bad(f"{name} is not among its files")


def _check_model(model: dict[str, Any]) -> None:
    architecture = model.get("architecture")
    if architecture not in ("llama", "decoder"):
        raise _bad(f"model.architecture {architecture!r} is unknown")
    for name, (low, high) in _DIMS.items():
        value = model.get(name)
        if type(value) is not int or not low <= value <= high:
            raise _bad(f"model.{name} {value!r} is not in {low}..{high}")
    if (
        model["heads"] % model["kv_heads"]
        or model["head_dim"] % 16
        or model["hidden"] % 32
        or model["intermediate"] % 32
    ):
        raise _bad("model: heads, kv_heads, head_dim, hidden and intermediate do not fit together")
    _number(model, "rope_theta", "model", 1.0, 1e12)
    _number(model, "norm_eps", "model", 1e-12, 1e-2)
    # "decoder" is Llama's with features: a reader that knows none of them refuses it by that word.
    if bool(Features.of(model).names()) != (architecture == "decoder"):
        raise _bad(f"model.features do not go with model.architecture {architecture!r}")
    scaling = model.get("rope_scaling")
    if scaling is None:
        return
    kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
    if kind not in _ROPE_FACTORS:
        raise _bad(f"model.rope_scaling {kind!r} is unknown")
    for name in _ROPE_FACTORS[kind]:
        _number(scaling, name, "model.rope_scaling", 1e-6, 1e12)


def _check_quantization(quantization: dict[str, Any], model: dict[str, Any]) -> None:
    scheme = quantization.get("scheme")
    if scheme not in SCHEMES:
        raise _bad(f"quantization.scheme {scheme!r} is unknown; this version reads {', '.join(SCHEMES)}")
    block = quantization.get("hadamard_block")
    is_block = type(block) is int and (block == 0 or (16 <= block <= 512 and block & (block - 1) == 0))
    if not is_block or (block and model["intermediate"] % block):
        raise _bad(
            f"quantization.hadamard_block {block!r} is no power of two that divides {model['intermediate']}"
        )
    expected = 32 if scheme == "w4a8" else 0
    if quantization.get("group") != expected:
        raise _bad(f"quantization.group {quantization.get('group')!r}, expected {expected} for {scheme}")
    activation = "bf16" if scheme == "bf16" else "int8"
    if quantization.get("activation") != activation:
        raise _bad(
            f"quantization.activation {quantization.get('activation')!r}, {scheme} goes with {activation!r}"
        )


def _check_head(head: dict[str, Any], vocab: int) -> None:
    rows = head.get("rows")
    if head.get("kind") not in ("trained", "tokens"):
        raise _bad(f"head.kind {head.get('kind')!r} is unknown")
    if (
        not isinstance(rows, list)
        or not 1 <= len(rows) <= 4096
        or not all(isinstance(row, str) and row for row in rows)
    ):
        raise _bad("head.rows is not a list of names")
    if len(set(rows)) != len(rows):
        raise _bad("head.rows names a row twice")
    ids = head.get("token_ids")
    if (ids is None) != (head["kind"] == "trained") or (
        ids is not None and (not _is_ids(ids, vocab) or len(ids) != len(rows))
    ):
        raise _bad("head.token_ids does not fit head.kind, head.rows and the vocabulary")


def _check_calibration(calibration: dict[str, Any]) -> None:
    for kind, entry in calibration.items():
        if not isinstance(entry, dict):
            raise _bad(f"calibration.{kind} is not an object")
        _number(entry, "temperature", f"calibration.{kind}", 1e-3, 1e3)
        _number(entry, "bias", f"calibration.{kind}", -1e3, 1e3)


def _check_family(family: dict[str, Any], rows: list[str], model: dict[str, Any]) -> Plan:
    if not isinstance(family.get("name"), str):
        raise _bad("family has no name")
    plan = Plan.from_json(family.get("plan"))
    if list(plan.rows) != rows:
        raise _bad("the rows of family.plan are not those of head")
    if max(max(ids) for ids in plan.all_ids()) >= model["vocab"]:
        raise _bad(f"family.plan: an id is not below {model['vocab']}, the vocabulary")
    if len(plan.root) > model["context"]:
        raise _bad(f"family.plan: a policy of {len(plan.root)} tokens in a context of {model['context']}")
    return plan


def _check_policy_kv(manifest: dict[str, Any], tokens: int) -> None:
    """The cached policy: null, or {"tokens": length of the root, "isa": the instruction set that computed
    it}."""
    cached = manifest.get("policy_kv")
    if (cached is None) != (POLICY not in manifest["files"]):
        raise _bad(f"policy_kv and {POLICY} go together")
    if cached is None:
        return
    if not isinstance(cached, dict) or not isinstance(cached.get("isa"), str):
        raise _bad("policy_kv needs tokens and isa")
    if type(cached.get("tokens")) is not int or cached["tokens"] != tokens:
        raise _bad(f"policy_kv.tokens {cached.get('tokens')!r} is not the length of the plan's root")


def _is_ids(value: Any, vocab: int) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < vocab for item in value)


def _number(table: dict[str, Any], key: str, where: str, low: float, high: float) -> None:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(f"{where}.{key} {value!r} is no number")
    if not math.isfinite(value) or not low <= value <= high:
        raise _bad(f"{where}.{key} {value!r} is no number in {low:g}..{high:g}")
