"""The compatibility promise: artefacts of every released format open and score as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aegis_edge.artifact import Artifact
from aegis_edge.guard import Guard
from aegis_edge.scoring.reference import ReferenceScorer

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def scores():
    return json.loads((GOLDEN / "scores.json").read_text())


def test_the_golden_artefact_is_whole():
    artifact = Artifact.open(GOLDEN / "artifact-v1")
    artifact.check_values()
    assert artifact.manifest["format_version"] == 1
    k, v = artifact.policy_kv()
    assert k.shape[:2] == v.shape[:2] == (1, 2)
    assert artifact.tensor("layers.0.qkv.weight").dtype == np.int8


def test_the_reference_scores_as_recorded(scores):
    artifact = Artifact.open(GOLDEN / "artifact-v1")
    guard = Guard.from_artifact(artifact, ReferenceScorer.from_artifact(artifact))
    margins = [verdict.prompt.margin for verdict in guard.check_many(scores["prompts"])]
    np.testing.assert_allclose(margins, scores["margins"], atol=1e-3)
    pair = guard.check(scores["prompts"][0], "the assistant answers")
    assert pair.response.margin == pytest.approx(scores["response"], abs=1e-3)


def test_the_runtime_scores_near_the_record(scores):
    """Its activations are int8: within a tenth of the margins' spread."""
    guard = Guard.load(GOLDEN / "artifact-v1", threads=1)
    margins = np.array([verdict.prompt.margin for verdict in guard.check_many(scores["prompts"])])
    assert np.abs(margins - scores["margins"]).max() < 0.1 * np.std(scores["margins"])


def test_a_changed_golden_artefact_is_refused(tmp_path):
    from aegis_edge.errors import ArtifactError

    shutil.copytree(GOLDEN / "artifact-v1", tmp_path / "guard")
    file = tmp_path / "guard" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"e"', b'"f"', 1))
    with pytest.raises(ArtifactError, match="SHA-256"):
        Artifact.open(tmp_path / "guard")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "policy.safetensors", "README.md"])
def test_a_guard_hashes_while_it_loads(tmp_path, name):
    """Weights are unpacked beside the hashing; a damaged file is refused all the same, and by its hash."""
    from aegis_edge.errors import ArtifactError

    shutil.copytree(GOLDEN / "artifact-v1", tmp_path / "guard")
    file = tmp_path / "guard" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: its SHA-256"):
        Guard.load(tmp_path / "guard", threads=1)
