"""Whatever happens while an artefact is written, the target is the old one or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_edge.errors import ExportError
from aegis_edge.export.base import file_sha256
from aegis_edge.export.write import MANIFEST, atomic_folder, refuse_existing, save_manifest


@pytest.fixture
def old(tmp_path) -> Path:
    folder = tmp_path / "guard"
    folder.mkdir()
    (folder / MANIFEST).write_text("old")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_new_folder(tmp_path):
    target = tmp_path / "deep" / "er" / "guard"
    with atomic_folder(target) as fresh:
        (fresh / "a").write_text("1")
        assert not target.exists() and fresh.parent == target.parent
    assert content(target) == {"a": "1"} and os.listdir(target.parent) == ["guard"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_force_replaces(old):
    with atomic_folder(old, force=True) as fresh:
        (fresh / MANIFEST).write_text("new")
        assert content(old) == {MANIFEST: "old"}
    assert content(old) == {MANIFEST: "new"} and os.listdir(old.parent) == ["guard"]


def test_without_force_nothing_is_touched(old):
    with pytest.raises(ExportError, match="exists already") as caught, atomic_folder(old):
        raise AssertionError("the block must not run")
    assert "--force" in (caught.value.hint or "") and content(old) == {MANIFEST: "old"}


def test_force_does_not_replace_what_is_no_artefact(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("meow")
    link = tmp_path / "link"
    link.symlink_to(photos)
    file = tmp_path / "file"
    file.write_text("x")
    for target in (photos, link, file):
        with pytest.raises(ExportError, match="not an artefact folder"):
            refuse_existing(target, force=True)
    assert content(photos) == {"cat.jpg": "meow"}


def test_an_empty_folder_may_be_replaced_by_force(tmp_path):
    (tmp_path / "guard").mkdir()
    with pytest.raises(ExportError):
        refuse_existing(tmp_path / "guard", force=False)
    with atomic_folder(tmp_path / "guard", force=True) as fresh:
        (fresh / "a").write_text("1")
    assert content(tmp_path / "guard") == {"a": "1"}


def test_a_failing_export_leaves_the_old_one(old):
    with pytest.raises(RuntimeError, match="disk full"), atomic_folder(old, force=True) as fresh:
        (fresh / MANIFEST).write_text("half")
        raise RuntimeError("disk full")
    assert content(old) == {MANIFEST: "old"} and os.listdir(old.parent) == ["guard"]


def test_a_failing_swap_puts_the_old_one_back(old, monkeypatch):
    rename = Path.rename

    def fail(self, target):
        if ".new-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), atomic_folder(old, force=True) as fresh:
        (fresh / MANIFEST).write_text("new")
    assert content(old) == {MANIFEST: "old"} and os.listdir(old.parent) == ["guard"]


def test_a_killed_export_leaves_the_old_one(old):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom aegis_edge.export.write import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), force=True) as fresh:\n"
        "    (fresh / 'aegis.json').write_text('half')\n    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(old)], check=False)
    assert done.returncode == 9 and content(old) == {MANIFEST: "old"}


def test_an_unwritable_place_is_an_export_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="can not write"), atomic_folder(tmp_path / "file" / "guard"):
        raise AssertionError("the block must not run")


def test_the_manifest_lists_every_other_file(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / MANIFEST).write_text("stale")
    written = save_manifest(tmp_path, {"format_version": 1, "name": "ä"})
    assert json.loads((tmp_path / MANIFEST).read_text("utf-8")) == written
    assert written["files"] == {"a": {"sha256": file_sha256(tmp_path / "a"), "bytes": 1}}
    with pytest.raises(ValueError, match="JSON"):
        save_manifest(tmp_path, {"x": float("nan")})
