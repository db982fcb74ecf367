"""The model of random weights that stands in for a larger one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from aegis_edge.artifact import Artifact
from aegis_edge.bench import gemm, random_model
from aegis_edge.bench.parent import parent_folder
from aegis_edge.cli import bench as command
from aegis_edge.guard import Guard

TINY = {
    **random_model.SHAPES["1b"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
}


@pytest.fixture
def tokenizer(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(random_model.SHAPES, "tiny", TINY)
    tiny_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_guard_and_its_parent(tmp_path: Path, tokenizer: Path) -> None:
    """It checks; it says how it was rounded; the bench finds its parent; a second call makes nothing."""
    guard, base = random_model.ready(tmp_path / "made", "tiny", tokenizer)
    assert 0 < Guard.load(guard, threads=1).check("How do I pick a lock?").prompt.probability < 1
    artifact = Artifact.open(guard)
    assert artifact.manifest["provenance"]["rounding"] == "nearest"
    before = (guard / "aegis.json").stat().st_mtime_ns
    assert random_model.ready(tmp_path / "made", "tiny", tokenizer) == (guard, base)
    assert (guard / "aegis.json").stat().st_mtime_ns == before
    folder = parent_folder(artifact, str(base), "none", tmp_path)
    assert (folder / "head.npz").is_file()


def test_weights_are_normal_and_the_same_each_time(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("one", "two"):
        random_model.make_base(tmp_path / name, {**TINY, "hidden_size": 128}, tokenizer)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    weights = load_file(tmp_path / "one" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].float()
    assert abs(weights.mean()) < 0.001 and 0.0195 < weights.std() < 0.0205


def test_the_shape_is_the_one_that_the_gemm_is_timed_in() -> None:
    shape, sizes = random_model.SHAPES["1b"], gemm.ONE_BILLION
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "intermediate": "intermediate_size",
    }
    assert {ours: shape[theirs] for ours, theirs in names.items()} == sizes
    assert command.PRESETS.keys() == {None, *random_model.SHAPES}
