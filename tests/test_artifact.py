"""A good artefact opens; one that an accident or a clumsy hand has changed is refused."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from bad_artifacts import MANIFEST, MODEL, QKV, Edit, cut, flip, load, sealed, spoilt
from tiny_artifact import HIDDEN, LAYERS

from aegis_edge.artifact import Artifact
from aegis_edge.errors import ArtifactError


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "bf16"])
def test_a_good_artefact_opens(artefacts, scheme):
    artifact = Artifact.open(artefacts[scheme])
    artifact.check_values()
    assert artifact.policy_kv() is None
    embedding = artifact.tensor("embed_tokens.weight")
    assert embedding.dtype == np.uint16 and embedding.shape[1] == HIDDEN
    np.testing.assert_array_equal(artifact.map_tensor("embed_tokens.weight"), embedding)
    assert not artifact.map_tensor("embed_tokens.weight").flags.writeable
    described = artifact.describe()
    assert described["quantization"]["scheme"] == scheme and described["model"]["layers"] == LAYERS
    assert described["bytes"] == sum(
        f.stat().st_size for f in artefacts[scheme].iterdir() if f.name != MANIFEST
    )


def test_what_the_safetensors_library_reads_is_what_is_read_here(artefacts):
    from safetensors.torch import load_file

    artifact = Artifact.open(artefacts["w4a8"])
    expected = load_file(artefacts["w4a8"] / MODEL)
    assert set(artifact.tensor_names()) == set(expected)
    for name, tensor in expected.items():
        raw = tensor.view(dtype=__import__("torch").uint16) if tensor.dtype.itemsize == 2 else tensor
        np.testing.assert_array_equal(artifact.tensor(name), raw.numpy())


ACCIDENTS: dict[str, tuple[Edit, str]] = {
    "model cut": (cut(MODEL, -1), "bytes, its manifest says"),
    "tokenizer cut": (cut("tokenizer.json", -1), "tokenizer.json: .* its manifest says"),
    "config cut": (cut("config.json", 10), "config.json: .* its manifest says"),
    "card cut": (cut("README.md", 0), "README.md: .* its manifest says"),
    "model longer": (lambda f: (f / MODEL).open("ab").write(b"\0"), "its manifest says"),
    "bit of a weight": (flip(MODEL, -1), "SHA-256"),
    "bit of the header size": (flip(MODEL, 0), "SHA-256"),
    "bit of the tokenizer": (flip("tokenizer.json", 100), "tokenizer.json: its SHA-256"),
    "bit of the config": (flip("config.json", 5), "config.json: its SHA-256"),
    "bit of the card": (flip("README.md", 2), "README.md: its SHA-256"),
    "model gone": (lambda f: (f / MODEL).unlink(), "model.safetensors is missing"),
    "manifest gone": (lambda f: (f / MANIFEST).unlink(), "aegis.json is missing"),
    "model renamed": (lambda f: (f / MODEL).rename(f / "model2.safetensors"), "not in aegis.json"),
    "extra file": (lambda f: (f / "notes.txt").write_text("x"), "notes.txt is in the folder"),
    "hidden extra file": (lambda f: (f / ".hidden").write_text("x"), ".hidden is in the folder"),
    "extra folder": (lambda f: (f / "more").mkdir(), "more is in the folder"),
    "a file swapped for a folder": (
        lambda f: [(f / "README.md").unlink(), (f / "README.md").mkdir()],
        "README.md is not a regular file",
    ),
    "a file swapped for a link": (
        lambda f: [(f / MODEL).rename(f.parent / "m"), (f / MODEL).symlink_to(f.parent / "m")],
        "model.safetensors can not be opened",
    ),
    "the manifest swapped for a link": (
        lambda f: [(f / MANIFEST).rename(f.parent / "m"), (f / MANIFEST).symlink_to(f.parent / "m")],
        "aegis.json can not be opened",
    ),
    "a file swapped for a pipe": (
        lambda f: [(f / "README.md").unlink(), os.mkfifo(f / "README.md")],
        "README.md is not a regular file",
    ),
    "two files exchanged": (
        lambda f: [
            (f / "config.json").rename(f / "x"),
            (f / "tokenizer.json").rename(f / "config.json"),
            (f / "x").rename(f / "tokenizer.json"),
        ],
        "its manifest says",
    ),
}


@pytest.mark.parametrize("case", ACCIDENTS)
def test_accidents_are_refused(artefacts, tmp_path, case):
    edit, message = ACCIDENTS[case]
    with pytest.raises(ArtifactError, match=message):
        load(spoilt(artefacts, tmp_path, edit))


@pytest.mark.parametrize("name", [MANIFEST, MODEL, "tokenizer.json", "config.json"])
def test_cut_at_any_byte(artefacts, tmp_path, name):
    """Cut at 40 places spread over the file and at every one of its first 16: refused, hashes agreeing or
    not."""
    folder = spoilt(artefacts, tmp_path, lambda f: None)
    whole = (folder / name).read_bytes().rstrip()
    ends = {*range(16), *np.linspace(0, len(whole) - 1, 40).astype(int).tolist(), len(whole) - 1}
    pristine = (folder / MANIFEST).read_bytes()
    for end in sorted(ends):
        (folder / name).write_bytes(whole[:end])
        with pytest.raises(ArtifactError):
            load(folder)
        if name != MANIFEST:
            sealed(lambda f: None)(folder)
            with pytest.raises(ArtifactError):
                load(folder)
            (folder / MANIFEST).write_bytes(pristine)


@pytest.mark.parametrize("name", [MODEL, "tokenizer.json", "config.json", "README.md"])
def test_any_flipped_bit(artefacts, tmp_path, name):
    folder = spoilt(artefacts, tmp_path, lambda f: None)
    whole = (folder / name).read_bytes()
    for position in np.linspace(0, len(whole) - 1, 25).astype(int).tolist():
        flip(name, position)(folder)
        with pytest.raises(ArtifactError, match="SHA-256"):
            load(folder)
        (folder / name).write_bytes(whole)
    load(folder)


def test_flipped_bits_of_the_manifest_never_crash(artefacts, tmp_path):
    """Some flips are harmless (a letter in a name of the policy); the rest are ArtifactErrors and nothing
    else."""
    folder = spoilt(artefacts, tmp_path, lambda f: None)
    whole = (folder / MANIFEST).read_bytes()
    refused = 0
    for position in np.linspace(0, len(whole) - 1, 200).astype(int).tolist():
        flip(MANIFEST, position)(folder)
        try:
            Artifact.open(folder)
        except ArtifactError:
            refused += 1
        (folder / MANIFEST).write_bytes(whole)
    assert refused > 100


def test_a_skipped_hash_still_checks_sizes(artefacts, tmp_path):
    folder = spoilt(artefacts, tmp_path, flip("README.md", 2))
    Artifact.open(folder, verify=False)
    cut("README.md", -1)(folder)
    with pytest.raises(ArtifactError, match="its manifest says"):
        Artifact.open(folder, verify=False)


def test_no_folder(tmp_path):
    with pytest.raises(ArtifactError, match="not an artefact folder") as caught:
        Artifact.open(tmp_path / "nothing")
    assert "export" in (caught.value.hint or "")


def test_what_was_checked_is_what_is_read(artefacts, tmp_path):
    """Another artefact renamed into place after `open` is not looked at."""
    folder = spoilt(artefacts, tmp_path, lambda f: None)
    artifact = Artifact.open(folder)
    expected = artifact.tensor(f"{QKV}.weight")
    shutil.copy(folder / MODEL, tmp_path / "other")
    os.truncate(tmp_path / "other", 10)
    (tmp_path / "other").rename(folder / MODEL)
    np.testing.assert_array_equal(artifact.tensor(f"{QKV}.weight"), expected)


def test_what_is_read_is_what_is_hashed(artefacts, tmp_path):
    """A good file renamed over a bad one that is open does not clear it, nor a bad one condemn a good one."""
    folder = spoilt(artefacts, tmp_path, flip(MODEL, -1))
    artifact = Artifact.open(folder, verify=False)
    shutil.copy(artefacts["w8a8"] / MODEL, tmp_path / "good")
    (tmp_path / "good").rename(folder / MODEL)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: its SHA-256"):
        artifact.verify()
    artifact = Artifact.open(folder, verify=False)
    shutil.copy(folder / MODEL, tmp_path / "bad")
    flip(tmp_path / "bad", -1)(folder)
    (tmp_path / "bad").rename(folder / MODEL)
    artifact.verify()


def test_a_file_shortened_while_open_is_an_error(artefacts, tmp_path):
    folder = spoilt(artefacts, tmp_path, lambda f: None)
    artifact = Artifact.open(folder, verify=False)
    os.truncate(folder / MODEL, 1000)
    with pytest.raises(ArtifactError, match="can not be hashed"):
        artifact.verify()
    with pytest.raises(ArtifactError, match="ends early"):
        artifact.check_values()
