"""Every architecture that is taken: the same logits as transformers, by every path to them; the others'
refusals.

The truth is the model's own class of transformers, run causally over each whole path of a custom tree: no
packing, no tree mask, no folding, and its own multipliers and soft caps.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_architectures import ARCHITECTURES, WINDOW, make, write

from aegis_edge.artifact import MANIFEST, Artifact
from aegis_edge.bench.contender import Source
from aegis_edge.bench.parent import parent_folder, reference
from aegis_edge.bench.paths import PathScorer
from aegis_edge.bench.scorers.reference import Torch
from aegis_edge.errors import ArtifactError, ExportError
from aegis_edge.export.merge import load_parent
from aegis_edge.export.pipeline import export_guard
from aegis_edge.features import Features
from aegis_edge.manifest import check_manifest
from aegis_edge.policy import Policy
from aegis_edge.scoring import Segment
from aegis_edge.scoring.cpu import CpuScorer
from aegis_edge.scoring.reference import ReferenceScorer

# Of the logits' norm. bf16: weights, keys, values and inputs rounded to 2^-9, four layers deep; w8a8: int8
# weights and inputs on a model of 96 channels, calibrated on eight lines.
EXACT, BF16, W8A8 = 1e-5, 1e-2, 6e-2
SURE = 0.1  # margins beyond this share of their deviation are verdicts that no rounding may turn


@dataclass(frozen=True)
class Case:
    """One architecture: its model, its base on disk, guards by scheme, and what transformers says,
    [slots, rows].
    """

    model: Any
    base: str
    guards: dict[str, Artifact]
    wanted: np.ndarray


def ids(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 250, n).astype(np.int32)


ROOT = ids(37, 9)


def segments() -> list[Segment]:
    """Three prompts under the root, verdicts, a response and leaves below them; two segments are longer than
    the window, and one path crosses it from node to node.
    """
    return [
        Segment(ids(17, 1), 0, (16,)),
        Segment(ids(WINDOW + 16, 2), 0, (0, 4, WINDOW + 15)),
        Segment(ids(1, 3), 2, (0,)),
        Segment(ids(30, 4), 3, (29,)),
        Segment(ids(2, 5), 1, (1,)),
        Segment(ids(3, 6), 1, (0, 2)),
        Segment(ids(5, 7), 0, (4,)),
    ]


def by_transformers(model: Any, rows: list[int]) -> np.ndarray:
    """Logits [slots, rows] of every path on its own."""
    nodes, found = segments(), []
    for node in nodes:
        path, parent = [node.ids], node.parent
        while parent:
            path.insert(0, nodes[parent - 1].ids)
            parent = nodes[parent - 1].parent
        whole = np.concatenate([ROOT, *path])
        with torch.no_grad():
            logits = model(torch.from_numpy(whole).long()[None]).logits[0]
        found += [logits[len(whole) - len(node.ids) + slot][rows].numpy() for slot in node.slots]
    return np.array(found)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "lines.txt"
    file.write_text("\n".join(f"How do I ask question {i} of the user and the assistant?" for i in range(8)))
    return file


def export(case_base: str, text: Path, out: Path, policy: Policy, **options: Any) -> Artifact:
    console = Console(file=io.StringIO())
    export_guard(case_base, "none", policy=policy, out=out, calibration=text, console=console, **options)
    return Artifact.open(out)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def case(request, tmp_path_factory, tiny_tokenizer, tiny_policy, text) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    model = make(request.param, tiny_tokenizer.get_vocab_size())
    base = write(folder / "base", model, tiny_tokenizer)
    guards = {
        scheme: export(base, text, folder / scheme, tiny_policy, quantize=scheme)
        for scheme in ("bf16", "w8a8")
    }
    return Case(model, base, guards, by_transformers(model, guards["bf16"].manifest["head"]["token_ids"]))


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def margins(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1] - logits[:, 0]


def has_the_verdicts(found: np.ndarray, wanted: np.ndarray) -> bool:
    theirs = margins(wanted)
    sure = np.abs(theirs) > SURE * theirs.std()
    return bool(sure.any() and (np.sign(margins(found)) == np.sign(theirs))[sure].all())


def run(scorer: Any) -> np.ndarray:
    return np.asarray(scorer.tree(ROOT).extend(segments()))


def test_the_reference_is_transformers(case: Case) -> None:
    parent = load_parent(case.base, "none")
    head = parent.head
    for cached in (False, True):
        scorer = ReferenceScorer.from_parent(
            parent.model, head.weight, head.bias, ROOT, cache_root=cached, softcap=head.softcap
        )
        assert distance(run(scorer), case.wanted) < EXACT


def test_the_bench_s_parent_is_transformers(case: Case, tmp_path, monkeypatch) -> None:
    """Soft caps among it: without that of the logits, a model that has one gives others."""
    artifact = case.guards["bf16"]
    source = Source(artifact.path, parent_folder(artifact, case.base, "none", tmp_path), tmp_path)
    engine = Torch(source.parent, "fp32", cached=False)

    def found() -> list[float]:
        return [
            distance(run(one), case.wanted) for one in (reference(source), PathScorer("t", engine, source))
        ]

    assert max(found()) < EXACT
    if source.softcap:
        monkeypatch.setattr(Source, "softcap", 0.0)
        assert min(found()) > 0.01


def test_an_artefact_in_bf16_gives_its_logits(case: Case) -> None:
    artifact = case.guards["bf16"]
    for found in (run(ReferenceScorer.from_artifact(artifact)), run(CpuScorer(artifact, ROOT, threads=1))):
        assert distance(found, case.wanted) < BF16
        assert has_the_verdicts(found, case.wanted)
    cached = ReferenceScorer.from_artifact(artifact, cache_root=True)
    assert distance(run(cached), case.wanted) < BF16


def test_an_artefact_in_w8a8_gives_them_within_its_margin(case: Case) -> None:
    artifact = case.guards["w8a8"]
    found, stored = run(CpuScorer(artifact, ROOT, threads=1)), run(ReferenceScorer.from_artifact(artifact))
    assert distance(stored, case.wanted) < W8A8 and distance(found, case.wanted) < W8A8
    assert distance(found, stored) < W8A8 / 2  # what is left are the activations
    assert has_the_verdicts(found, case.wanted)


def test_a_grown_tree_and_a_packed_pass_have_the_same_bits(case: Case) -> None:
    scorer = CpuScorer(case.guards["w8a8"], ROOT, threads=2)
    whole, tree = scorer.tree(ROOT).extend(segments()), scorer.tree(ROOT)
    parts = [tree.extend(segments()[:2]), tree.extend(segments()[2:5]), tree.extend(segments()[5:])]
    assert (np.concatenate(parts) == whole).all()


class Changed:
    """An artefact with another manifest or without some of its tensors, for engines that ask no questions."""

    def __init__(
        self, artifact: Artifact, features: dict[str, Any], scale: tuple[str, float] | None = None
    ) -> None:
        self._artifact, self._scale = artifact, scale
        model = {**artifact.manifest["model"], "features": features}
        self.manifest = {**artifact.manifest, "model": model}

    def tensor_names(self) -> list[str]:
        qk, out = (self.manifest["model"]["features"].get(key) for key in ("qk_norm", "out_norms"))
        gone = ("q_norm", "k_norm") * (not qk) + ("attention_out_norm", "mlp_out_norm") * (not out)
        return [
            name for name in self._artifact.tensor_names() if not any(f".{part}." in name for part in gone)
        ]

    def tensor(self, name: str) -> np.ndarray:
        array = self._artifact.tensor(name)
        return array * np.float32(self._scale[1]) if self._scale and self._scale[0] in name else array

    map_tensor = tensor


def test_no_feature_can_be_left_out(case: Case) -> None:
    """The inverse: without any one of them, logits are others, in the runtime and in the reference."""
    for scheme, artifact in case.guards.items():
        features = artifact.manifest["model"].get("features", {})
        whole = run(CpuScorer(artifact, ROOT, threads=1))
        for name in set(features) - {"rope_of", "rope_factors"}:
            less = Changed(artifact, {key: value for key, value in features.items() if key != name})
            assert distance(run(CpuScorer(less, ROOT, threads=1)), whole) > 3 * BF16, (scheme, name)
        if "rope_of" in features and any(features["rope_of"]):
            swapped = {**features, "rope_of": [1 - table for table in features["rope_of"]]}
            assert distance(run(CpuScorer(Changed(artifact, swapped), ROOT, threads=1)), whole) > 3 * BF16


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory, tiny_tokenizer, tiny_policy, text) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    base = write(folder / "base", make("gemma3", tiny_tokenizer.get_vocab_size()), tiny_tokenizer)
    return export(base, text, folder / "guard", tiny_policy, quantize="bf16").path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("qk_norm"), "unknown tensor layers.0.k_norm.weight"),
        (lambda f: f.pop("out_norms"), "unknown tensor layers.0.attention_out_norm.weight"),
        (lambda f: (f.pop("rope_of"), f.pop("rope_factors")), "unknown tensor rope.inverse_frequency"),
        (
            lambda f: f.update(rope_factors=[1.0] * 3),
            r"rope.inverse_frequency is F32 \[2, 40\], expected F32 \[3",
        ),
        (lambda f: f.pop("rope_of"), "model.features"),
        (lambda f: f.update(rope_of=[0, 0, 0, 2]), "model.features"),
        (lambda f: f.update(windows=[24]), "model.features"),
        (lambda f: f.update(windows=[24, 0, 24, -1]), "model.features"),
        (lambda f: f.update(windows="24"), "model.features"),
        (lambda f: f.update(qk_norm=1), "model.features"),
        (lambda f: f.update(activation="relu"), "model.features"),
        (lambda f: f.update(attention_softcap=-1.0), "model.features"),
        (lambda f: f.update(input_block=24), "model.features"),
        (lambda f: f.update(input_block=True), "model.features"),
        (lambda f: f.update(rope_factors=["1"]), "model.features"),
        (lambda f: f.update(novelty=True), "model.features"),
        (lambda f: f.clear(), "model.features do not go with model.architecture 'decoder'"),
    ],
)
def test_a_manifest_with_other_features_is_refused(
    gemma3: Path, tmp_path: Path, change: Any, message: str
) -> None:
    shutil.copytree(gemma3, tmp_path / "guard")
    manifest = json.loads((gemma3 / MANIFEST).read_text())
    change(manifest["model"]["features"])
    (tmp_path / "guard" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(tmp_path / "guard")


def test_a_runtime_that_knew_no_features_refuses_the_guard(gemma3: Path) -> None:
    """Version 0.1 compares model.architecture with "llama", and so do engines that copy it."""
    manifest = json.loads((gemma3 / MANIFEST).read_text())
    assert manifest["model"]["architecture"] == "decoder"
    manifest["model"]["architecture"] = "llama"
    with pytest.raises(ArtifactError, match=r"do not go with model\.architecture 'llama'"):
        check_manifest(manifest)


def test_other_targets_and_the_gpu_refuse_by_name(
    case: Case, text: Path, tmp_path: Path, tiny_policy: Policy
) -> None:
    lacking = Features.of(case.guards["bf16"].manifest["model"]).names()
    is_granite = case.model.config.model_type == "granite"
    if not lacking and not is_granite:
        return
    name = lacking[0] if lacking else "multipliers"
    with pytest.raises(
        ExportError, match="--target hf takes Llama's decoder; this base needs .*" + re.escape(name)
    ):
        export(case.base, text, tmp_path / "out", tiny_policy, target="hf")
    if lacking:
        pytest.importorskip("triton", reason="Triton is not installed: pip install '.[cuda]'")
        from aegis_edge.errors import ScorerError
        from aegis_edge.scoring.cuda import CudaScorer

        with pytest.raises(ScorerError, match="Llama's decoder alone; this guard needs .*" + re.escape(name)):
            CudaScorer.from_artifact(case.guards["bf16"])
