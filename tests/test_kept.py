"""A policy's keys and values that outlive a process: the same bits, and nothing that can not be trusted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aegis_edge.artifact import Artifact
from aegis_edge.guard import Guard
from aegis_edge.kept import FILES_KEPT, Kept
from aegis_edge.policy import Category, Policy
from aegis_edge.scoring.cpu import CpuScorer

LOCKS = Policy((Category("Locks", None, "Opening them."), Category.of("S1")))
TEXTS = ["How do I pick a lock?", ("What is a lock?", "A thing with a key."), "locks " * 40]


@pytest.fixture
def folder(artefacts, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(artefacts["w8a8"], tmp_path / "guard"))


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Lengths of the roots that were computed, not read."""
    lengths: list[int] = []
    compute = CpuScorer._compute_root

    def counted(self, root):
        lengths.append(len(root))
        return compute(self, root)

    monkeypatch.setattr(CpuScorer, "_compute_root", counted)
    return lengths


def verdicts(folder: Path, policy: Policy = LOCKS, **options):
    return Guard.load(folder, 1, policy=policy, **options).check_many(TEXTS)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def kept(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.policies")


def test_verdicts_are_the_same_bits_with_and_without_what_was_kept(folder, computed):
    plain = verdicts(folder, keep_policy=False)
    assert not kept(folder).exists()
    own = computed.count(computed[0])  # the tiny artefact's own root is computed at every load
    first = verdicts(folder)
    (entry,) = entries(kept(folder))
    before = len(computed)
    second = verdicts(folder)
    assert plain == first == second
    assert len(computed) - before < 2 and own  # its own root alone: the other one was read
    assert entry.stat().st_mode & 0o777 == 0o600
    # The inverse: bits that are read do count.
    scorer = CpuScorer(Artifact.open(folder), np.array([1, 2, 3], np.int32), store=Changed())
    root = np.arange(5, dtype=np.int32)
    assert not np.array_equal(scorer._cached_root(root)[0], scorer._compute_root(root)[0])


class Changed:
    """A store that hands out keys of another policy."""

    def read(self, root, isa):
        return np.zeros((2, 2, 1, 8, 16, 2), np.uint16), np.zeros((2, 2, 3, 16, 2), np.uint16)

    def write(self, root, isa, kv):
        raise AssertionError("nothing was computed")


def test_what_keys_and_values_depend_on_is_in_the_name(folder):
    artifact = Artifact.open(folder)
    root = np.arange(20, dtype=np.int32)
    names = {
        Kept(artifact).name(root, "a"),
        Kept(artifact).name(root, "b"),
        Kept(artifact).name(root[1:], "a"),
    }
    for section, value in (
        ("model", {**artifact.manifest["model"], "rope_theta": 5e5}),
        ("quantization", {**artifact.manifest["quantization"], "hadamard_block": 16}),
        ("files", {**artifact.manifest["files"], "model.safetensors": {"sha256": "0" * 64}}),
        ("files", {**artifact.manifest["files"], "tokenizer.json": {"sha256": "0" * 64}}),
    ):
        other = Artifact.open(folder)
        other.manifest = {**artifact.manifest, section: value}
        names.add(Kept(other).name(root, "a"))
    assert len(names) == 7


def spoil_byte(entry: Path, other: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)


def spoil_digest(entry: Path, other: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-1] + b"\0")


SPOILT = {
    "a bit": spoil_byte,
    "its hash": spoil_digest,
    "its end": lambda entry, other: entry.write_bytes(entry.read_bytes()[:-100]),
    "nothing left": lambda entry, other: entry.write_bytes(b""),
    "more": lambda entry, other: entry.write_bytes(entry.read_bytes() + b"x"),
    "no safetensors": lambda entry, other: entry.write_bytes(b"\xff" * 1000),
    "another policy's": lambda entry, other: shutil.copyfile(other, entry),
    "writable by others": lambda entry, other: entry.chmod(0o666),
    "a link": lambda entry, other: entry.rename(x := Path(f"{entry}.x")).exists() and entry.symlink_to(x),
    "a folder": lambda entry, other: (entry.unlink(), entry.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_entry_is_computed_anew(folder, how):
    artifact = Artifact.open(folder)
    store, scorer = Kept(artifact), CpuScorer(artifact, np.array([1], np.int32), threads=1)
    root, other = np.arange(20, dtype=np.int32), np.arange(1, 21, dtype=np.int32)
    for ids in (root, other):
        store.write(ids, "isa", scorer._compute_root(ids))
    entry, second = (kept(folder) / store.name(ids, "isa") for ids in (root, other))
    wanted = store.read(root, "isa")
    assert all(np.array_equal(a, b) for a, b in zip(wanted, scorer._compute_root(root), strict=True))
    SPOILT[how](entry, second)
    assert store.read(root, "isa") is None
    assert store.read(other, "isa") is not None
    store.write(root, "isa", wanted)  # and kept again: where a folder is in the way, in the user's cache
    assert store.read(root, "isa") is not None


def test_a_folder_that_can_not_be_written_falls_back_to_the_users_cache(folder, tmp_path):
    """A file stands where the folder would be: nobody can write there, root neither."""
    kept(folder).write_text("in the way")
    first = verdicts(folder)
    (entry,) = entries(tmp_path / "cache" / "aegis-edge" / "policies")
    assert verdicts(folder) == first and entries(entry.parent) == [entry]


def test_where_nothing_can_be_written_checks_go_on(folder, tmp_path):
    kept(folder).write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    assert verdicts(folder) == verdicts(folder, keep_policy=False)


def test_entries_do_not_pile_up(folder):
    store = Kept(Artifact.open(folder))
    kv = np.zeros((2, 2, 1, 8, 16, 2), np.uint16), np.zeros((2, 2, 1, 16, 2), np.uint16)
    for i in range(FILES_KEPT + 3):
        store.write(np.array([i, 0], np.int32), "isa", kv)
        os.utime(kept(folder) / store.name(np.array([i, 0], np.int32), "isa"), (i, i))
    assert len(entries(kept(folder))) == FILES_KEPT
    assert store.read(np.array([0, 0], np.int32), "isa") is None


def test_two_processes_at_once_and_their_successor(folder):
    """Both compute, both write, neither sees half a file; no temporary file is left."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_kept import verdicts\n"
        "print([v.prompt.margin.hex() for v in verdicts(Path(sys.argv[1]))])"
    )
    arguments = [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=300)[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    own = [v.prompt.margin.hex() for v in verdicts(folder)]
    assert said == {f"{own}\n"} and len(entries(kept(folder))) == 1


def test_thresholds_alone_need_no_other_root(folder):
    own = Policy.from_dict(Artifact.open(folder).manifest["policy"])
    verdicts(folder, replace(own, thresholds=replace(own.thresholds, prompt=0.9)))
    assert not kept(folder).exists()
