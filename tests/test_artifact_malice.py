"""Artefacts that somebody made to be opened though they are bad: every file agrees with its hash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bad_artifacts import (
    MANIFEST,
    MODEL,
    QKV,
    Edit,
    entry,
    file_name,
    header,
    json_file,
    load,
    manifest,
    raw_header,
    replace,
    resized,
    sealed,
    spoilt,
    tensors,
    values,
)
from tiny_artifact import HIDDEN

from aegis_edge.artifact import check_vocabulary
from aegis_edge.errors import ArtifactError

DEEP = b'{"a":' * 100 + b"1" + b"}" * 100
VERY_DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

MANIFESTS: dict[str, tuple[Edit, str]] = {
    # as JSON
    "no JSON": (lambda f: (f / MANIFEST).write_bytes(b"hello"), "aegis.json: not valid JSON"),
    "a list": (lambda f: (f / MANIFEST).write_bytes(b"[]"), "expected a JSON object"),
    "no UTF-8": (lambda f: (f / MANIFEST).write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
    "deep": (lambda f: (f / MANIFEST).write_bytes(DEEP), "nested too deeply"),
    "very deep": (lambda f: (f / MANIFEST).write_bytes(VERY_DEEP), "nested too deeply"),
    "huge": (lambda f: (f / MANIFEST).write_bytes(b" " * (5 << 20)), "at most"),
    "long number": (lambda f: (f / MANIFEST).write_bytes(b'{"a":' + b"9" * 10000 + b"}"), "not valid JSON"),
    "duplicate key": (replace(MANIFEST, b'"format_version": 1', b'"format_version": 1, "format_version": 1'),
                      "appears twice"),
    "NaN": (manifest("model/rope_theta", float("nan")), "no JSON number"),
    # versions and sections
    "next version": (manifest("format_version", 2), "format_version 2"),
    "version as text": (manifest("format_version", "1"), "format_version '1'"),
    "version true": (manifest("format_version", True), "format_version True"),
    "no version": (manifest("format_version", ...), "format_version None"),
    "no model": (manifest("model", ...), "section 'model'"),
    "calibration a list": (manifest("calibration", []), "section 'calibration'"),
    # files
    "path escape": (file_name("../evil"), "not allowed"),
    "absolute path": (file_name("/etc/passwd"), "not allowed"),
    "backslash": (file_name("a\\b"), "not allowed"),
    "NUL in a name": (file_name("a\0b"), "not allowed"),
    "empty name": (file_name(""), "not allowed"),
    "dot": (file_name("."), "not allowed"),
    "dot dot": (file_name(".."), "not allowed"),
    "the manifest itself": (file_name(MANIFEST), "not allowed"),
    "tokenizer not listed": (manifest("files/tokenizer.json", ...), "tokenizer.json is not among"),
    "no hash": (manifest("files/README.md", {"bytes": 0}), "needs sha256 and bytes"),
    "hash too short": (manifest("files/README.md", {"sha256": "ab", "bytes": 0}), "not a SHA-256"),
    "negative size": (manifest("files/README.md", {"sha256": "0" * 64, "bytes": -1}), "bad size"),
    # the model's sizes
    "no layers": (manifest("model/layers", 0), "model.layers 0"),
    "many layers": (manifest("model/layers", 10**9), "model.layers"),
    "one layer less": (manifest("model/layers", 1), "config.json"),
    "hidden as float": (manifest("model/hidden", 64.0), "model.hidden 64.0"),
    "hidden true": (manifest("model/hidden", True), "model.hidden True"),
    "odd hidden": (manifest("model/hidden", 65), "do not fit together"),
    "other hidden": (manifest("model/hidden", 96), "hidden_size"),
    "odd head": (manifest("model/head_dim", 17), "do not fit together"),
    "heads no multiple": (manifest("model/kv_heads", 3), "do not fit together"),
    "other key heads": (manifest("model/kv_heads", 4), "expected F32"),
    "other head size": (manifest("model/head_dim", 32), "expected"),
    "vocabulary too small": (manifest("model/vocab", 100), "family.plan: an id|vocab_size"),
    "vocabulary too large": (manifest("model/vocab", 1 << 40), "model.vocab"),
    "no context": (manifest("model/context", 0), "model.context"),
    "context shorter than the policy": (manifest("model/context", 8), "in a context of 8"),
    "theta zero": (manifest("model/rope_theta", 0), "rope_theta"),
    "theta as text": (manifest("model/rope_theta", "1e4"), "rope_theta"),
    "theta infinite": (replace(MANIFEST, b'"rope_theta": 10000.0', b'"rope_theta": 1e999'), "rope_theta"),
    "negative epsilon": (manifest("model/norm_eps", -1e-5), "norm_eps"),
    "unknown architecture": (manifest("model/architecture", "mamba"), "architecture 'mamba'"),
    "unknown rope": (manifest("model/rope_scaling", {"rope_type": "yarn"}), "rope_scaling 'yarn'"),
    "rope factor zero": (manifest("model/rope_scaling", {"rope_type": "linear", "factor": 0}), "factor 0"),
    "rope scaling a list": (manifest("model/rope_scaling", []), "rope_scaling"),
    # quantisation, head, calibration, plan
    "unknown scheme": (manifest("quantization/scheme", "w2a2"), "scheme 'w2a2'"),
    "another scheme": (manifest("quantization", {"scheme": "bf16", "group": 0, "hadamard_block": 0,
                                                 "activation": "bf16"}), "expected BF16"),
    "wrong group": (manifest("quantization/group", 64), "quantization.group 64"),
    "block no power of two": (manifest("quantization/hadamard_block", 48), "hadamard_block 48"),
    "block does not divide": (manifest("quantization/hadamard_block", 64), "hadamard_block 64"),
    "block negative": (manifest("quantization/hadamard_block", -32), "hadamard_block -32"),
    "block huge": (manifest("quantization/hadamard_block", 1 << 40), "hadamard_block"),
    "unknown activation": (manifest("quantization/activation", "fp8"), "activation 'fp8'"),
    "unknown head": (manifest("head/kind", "oracle"), "head.kind"),
    "row twice": (manifest("head/rows", ["a", "a"]), "row twice"),
    "no rows": (manifest("head/rows", []), "head.rows"),
    "rows of another family": (manifest("head/rows", [f"r{i}" for i in range(6)]), "not those of head"),
    "ids of a trained head": (manifest("head/token_ids", [1, 2, 3, 4, 5, 6]), "head.token_ids"),
    "temperature zero": (manifest("calibration/prompt", {"temperature": 0, "bias": 0}), "temperature 0"),
    "no bias": (manifest("calibration/prompt", {"temperature": 1}), "bias None"),
    "family without a name": (manifest("family/name", 3), "family has no name"),
    "id beyond the vocabulary": (manifest("family/plan/root_ids", [1, 1 << 20]), "an id is not below"),
    "negative id": (manifest("family/plan/root_ids", [-1]), "int32"),
    "leaf beyond the vocabulary": (manifest("family/plan/leaf_ids", [[1, 401]] * 4), "an id is not below"),
    "empty root": (manifest("family/plan/root_ids", []), "family plan"),
    "plan with a template": (manifest("family/plan/template", "{{ x }}"), "family plan"),
    "policy_kv without its file": (manifest("policy_kv", {"tokens": 1, "isa": "scalar"}), "go together"),
}  # fmt: skip

MALICE: dict[str, tuple[Edit, str]] = {
    # small files
    "config of another model": (json_file("config.json", "hidden_size", 128), "hidden_size is 128"),
    "config no JSON": (lambda f: (f / "config.json").write_text("x"), "config.json: not valid JSON"),
    "tokenizer no JSON": (lambda f: (f / "tokenizer.json").write_text("x"), "tokenizer.json: not valid"),
    "tokenizer without vocabulary": (json_file("tokenizer.json", "model/vocab", ...), "no model.vocab"),
    "token beyond the embedding": (json_file("tokenizer.json", "model/vocab/a", 10**6), "not below"),
    "two tokens with one id": (json_file("tokenizer.json", "model/vocab/a", 50), "share an id"),
    "added token beyond": (json_file("tokenizer.json", "added_tokens/0", {"id": 10**6, "content": "x"}),
                           "not below|added_tokens"),
    # the safetensors file
    "header size beyond the file": (raw_header(b"{}", 1 << 60), "header of"),
    "header size zero": (raw_header(b"", 0), "header of 0"),
    "header a list": (raw_header(b"[]"), "expected a JSON object"),
    "header no JSON": (raw_header(b"{]"), "not valid JSON"),
    "no tensors": (raw_header(b"{}"), "its header accounts for"),
    "trailing bytes": (lambda f: (f / MODEL).open("ab").write(b"\0"), "its header accounts for"),
    "a tensor missing": (header(lambda h: {k: v for k, v in h.items() if k != f"{QKV}.scale"}),
                         "starts at byte"),
    "a tensor unknown": (header(lambda h: {("evil" if k == "head.bias" else k): v for k, v in h.items()}),
                         "tensor head.bias is missing"),
    "a tensor of no name": (header(lambda h: {("" if k == "head.bias" else k): v for k, v in h.items()}),
                            "not described"),
    "a tensor twice": (lambda f: raw_header(_doubled(f))(f), "appears twice"),
    "overlapping": (header(lambda h: h["head.bias"].update(data_offsets=h["head.weight"]["data_offsets"])),
                    "expected"),
    "offsets beyond": (entry("head.bias", "data_offsets", [1 << 40, (1 << 40) + 24]), "ends beyond"),
    "offsets reversed": (entry("head.bias", "data_offsets", [24, 0]), "expected 24"),
    "offsets negative": (entry("head.bias", "data_offsets", [-24, 0]), "bad data_offsets"),
    "offsets three": (entry("head.bias", "data_offsets", [0, 24, 48]), "bad data_offsets"),
    "shape overflows": (entry("head.bias", "shape", [1 << 62, 1 << 62]), "bad shape"),
    "shape too large": (entry("head.bias", "shape", [1 << 40]), "bytes for shape"),
    "shape negative": (entry("head.bias", "shape", [-6]), "bad shape"),
    "shape of floats": (entry("head.bias", "shape", [6.0]), "bad shape"),
    "shape of rank 9": (entry("head.bias", "shape", [1] * 8 + [6]), "bad shape"),
    "rank 2 for a vector": (entry("head.bias", "shape", [1, 6]), "expected F32"),
    "unknown type": (entry("head.bias", "dtype", "F64"), "unknown type 'F64'"),
    "type no text": (entry("head.bias", "dtype", ["F32"]), "unknown type"),
    "another type": (entry(f"{QKV}.weight", "dtype", "U8"), "expected I8"),
    "extra key": (entry("head.bias", "evil", 1), "not described"),
    "transposed": (entry("layers.0.down.weight", "shape", [96, 64]), "expected I8 \\[64, 96\\]"),
    "row too many": (resized("head.weight", [7, HIDDEN]), "expected F32 \\[6, 64\\]"),
    "embedding of another size": (resized("embed_tokens.weight", [10, HIDDEN]), "expected BF16"),
    # values
    "scale NaN": (values(f"{QKV}.scale", "<f4", 3, np.nan), "scale: a value"),
    "scale infinite": (values(f"{QKV}.scale", "<f4", 0, np.inf), "scale: a value"),
    "scale zero": (values(f"{QKV}.scale", "<f4", 1, 0), "scale: a value"),
    "scale negative": (values(f"{QKV}.scale", "<f4", 1, -1), "scale: a value"),
    "weight -128": (values(f"{QKV}.weight", "i1", 77, -128), "qkv.weight: a value"),
    "bias NaN": (values(f"{QKV}.bias", "<f4", 5, np.nan), "qkv.bias: a value"),
    "label row NaN": (values("head.weight", "<f4", 5, np.nan), "head.weight: a value"),
    "embedding NaN": (values("embed_tokens.weight", "<u2", 9, 0x7FC0), "embed_tokens.weight: a value"),
    "embedding infinite": (values("embed_tokens.weight", "<u2", 9, 0xFF80), "embed_tokens.weight: a value"),
}  # fmt: skip


def _doubled(folder: Path) -> bytes:
    """The header's text with its last tensor in it twice."""
    data = (folder / MODEL).read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name, info = list(tensors(head).items())[-1]
    return (json.dumps(head)[:-1] + f", {json.dumps(name)}: {json.dumps(info)}}}").encode()


@pytest.mark.parametrize("case", MANIFESTS)
def test_bad_manifests_are_refused(artefacts, tmp_path, case):
    edit, message = MANIFESTS[case]
    with pytest.raises(ArtifactError, match=message):
        load(spoilt(artefacts, tmp_path, edit))


@pytest.mark.parametrize("case", MALICE)
def test_malice_is_refused(artefacts, tmp_path, case):
    edit, message = MALICE[case]
    with pytest.raises(ArtifactError, match=message):
        load(spoilt(artefacts, tmp_path, sealed(edit)))


INT4: dict[str, tuple[Edit, str]] = {
    "group scale zero": (values(f"{QKV}.group_scale", "u1", 0, 0), "group_scale: a value"),
    "group scale 19": (values(f"{QKV}.group_scale", "u1", 7, 19), "group_scale: a value"),
    "low nibble zero": (values(f"{QKV}.weight", "u1", 5, 0xF0), "qkv.weight: a value"),
    "high nibble zero": (values(f"{QKV}.weight", "u1", 5, 0x0F), "qkv.weight: a value"),
    "group scale missing": (
        header(lambda h: {k.replace(f"{QKV}.group_scale", "evil"): v for k, v in h.items()}),
        "group_scale is missing",
    ),
    "group scale too long": (resized(f"{QKV}.group_scale", [128, 3]), "expected U8 \\[128, 2\\]"),
}


@pytest.mark.parametrize("case", INT4)
def test_int4_malice_is_refused(artefacts, tmp_path, case):
    edit, message = INT4[case]
    with pytest.raises(ArtifactError, match=message):
        load(spoilt(artefacts, tmp_path, sealed(edit), "w4a8"))


def test_bf16_needs_its_norms(artefacts, tmp_path):
    rename = header(lambda h: {k.replace("final_norm.weight", "evil"): v for k, v in h.items()})
    with pytest.raises(ArtifactError, match=r"final_norm\.weight is missing"):
        load(spoilt(artefacts, tmp_path, sealed(rename), "bf16"))


def test_vocabulary_of_other_tokenizers():
    check_vocabulary({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, 2)
    with pytest.raises(ArtifactError, match="not below 1"):
        check_vocabulary({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, 1)
    with pytest.raises(ArtifactError, match="added_tokens"):
        check_vocabulary({"model": {"vocab": {"a": 0}}, "added_tokens": "x"}, 2)


def test_there_are_enough_of_them():
    assert len(MANIFESTS) + len(MALICE) + len(INT4) >= 80
