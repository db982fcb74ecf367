"""From a tiny base to a guard that answers, through every step of the export."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_export import write_adapter, write_base

from aegis_edge.artifact import MANIFEST, Artifact
from aegis_edge.errors import AegisError
from aegis_edge.export import pipeline
from aegis_edge.export.merge import load_parent
from aegis_edge.export.pipeline import export_guard
from aegis_edge.export.targets import aegis
from aegis_edge.guard import Guard
from aegis_edge.scoring import Segment
from aegis_edge.scoring.cpu import CpuScorer
from aegis_edge.scoring.reference import ReferenceScorer

PROMPTS = ["How do I pick a lock?", "weapons and other things", "", "1234567890 " * 10]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model = write_base(folder, tiny_tokenizer)
    return str(folder), str(write_adapter(folder.parent / "adapter", model))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "lines.txt"
    file.write_text("\n".join(f"How do I ask question {i} of the user and the assistant?" for i in range(40)))
    return file


def export(base, text, out, policy, **options):
    console = Console(file=io.StringIO())
    return export_guard(
        base[0], base[1], policy=policy, out=out, calibration=text, console=console, **options
    )


@pytest.mark.parametrize(("scheme", "tolerance"), [("bf16", 0.02), ("w8a8", 0.06), ("w4a8", 0.6)])
def test_an_exported_guard_answers_like_its_parent(base, text, tmp_path, tiny_policy, scheme, tolerance):
    out = tmp_path / "guard"
    exported = export(base, text, out, tiny_policy, quantize=scheme)
    artifact = Artifact.open(out)
    assert exported.bytes_after == sum(f.stat().st_size for f in out.iterdir())
    assert exported.bytes_before == 2 * sum(p.numel() for p in load_parent(*base).model.parameters())
    assert "of the margins' standard deviation" in exported.summary() and scheme in exported.summary()
    parent = load_parent(*base)
    guard, reference = Guard.load(out, threads=1), _parent_guard(artifact, parent)
    margins = np.array([[g.check(p).prompt.margin for p in PROMPTS] for g in (guard, reference)])
    assert np.abs(margins[0] - margins[1]).mean() < tolerance * max(1.0, margins[1].std())
    assert artifact.manifest["calibration"]["prompt"] == {"temperature": 1.5, "bias": 0.25}


def _parent_guard(artifact, parent) -> Guard:
    root = artifact.manifest["family"]["plan"]["root_ids"]
    scorer = ReferenceScorer.from_parent(parent.model, parent.head.weight, parent.head.bias, root)
    return Guard.from_artifact(artifact, scorer)


def test_the_cached_policy_is_the_one_computed_afresh(base, text, tmp_path, tiny_policy):
    export(base, text, tmp_path / "guard", tiny_policy)
    artifact = Artifact.open(tmp_path / "guard")
    root = np.array(artifact.manifest["family"]["plan"]["root_ids"], np.int32)
    fresh = CpuScorer(artifact, root, threads=1)
    if artifact.manifest["policy_kv"]["isa"] == fresh.isa:
        for stored, computed in zip(artifact.policy_kv(), fresh.root_kv(), strict=True):
            np.testing.assert_array_equal(stored, computed)
    segment = Segment(np.array([5, 6, 7], np.int32), 0, (2,))
    cached = CpuScorer(artifact, root, artifact.policy_kv(), threads=1)
    np.testing.assert_array_equal(cached.tree().extend([segment]), fresh.tree().extend([segment]))


def test_the_same_export_gives_the_same_bytes(base, text, tmp_path, tiny_policy):
    one, two = (export(base, text, tmp_path / name, tiny_policy).path for name in ("one", "two"))
    assert {f.name for f in one.iterdir()} == {f.name for f in two.iterdir()}
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_what_it_says_of_itself(base, text, tmp_path, tiny_policy):
    export(base, text, tmp_path / "guard", tiny_policy, quantize="w4a8")
    manifest = Artifact.open(tmp_path / "guard").manifest
    provenance = manifest["provenance"]
    assert provenance["command"].startswith("aegis-edge export --base tiny --adapter adapter")
    assert provenance["calibration"]["conversations"] == 40 and provenance["adapter"]["name"] == "adapter"
    everything = "".join(f.read_text("utf-8", "replace") for f in (tmp_path / "guard").iterdir())
    assert str(tmp_path) not in everything and base[0] not in everything  # no folder of whoever made it
    card = (tmp_path / "guard" / "README.md").read_text()
    assert "Locks: Talks about locks." in card and "int4 weights" in card and "verdicts that differ" in card


def test_rounding_to_nearest_is_stated_and_needs_no_calibration(base, text, tmp_path, tiny_policy):
    export(base, text, tmp_path / "gptq", tiny_policy)
    export(base, text, tmp_path / "near", tiny_policy, rounding="nearest")
    one, two = Artifact.open(tmp_path / "gptq"), Artifact.open(tmp_path / "near")
    assert one.manifest["provenance"]["rounding"] == "gptq" and "--rounding" not in _command(one)
    assert two.manifest["provenance"]["rounding"] == "nearest" and "--rounding nearest" in _command(two)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("gptq", "near")]
    assert ["rounded to nearest without calibration" in card for card in cards] == [False, True]
    name = "layers.0.down"
    np.testing.assert_array_equal(one.tensor(f"{name}.scale"), two.tensor(f"{name}.scale"))
    assert (one.tensor(f"{name}.weight") != two.tensor(f"{name}.weight")).any()
    other = tmp_path / "other.txt"
    other.write_text("Quite another text about lighthouses.")
    export(base, other, tmp_path / "again", tiny_policy, rounding="nearest")
    again = Artifact.open(tmp_path / "again").tensor(f"{name}.weight")
    np.testing.assert_array_equal(again, two.tensor(f"{name}.weight"))


def _command(artifact) -> str:
    return artifact.manifest["provenance"]["command"]


def test_progress_goes_to_the_console_and_nothing_to_stdout(base, text, tmp_path, tiny_policy, capfd):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    export_guard(*base, policy=tiny_policy, out=tmp_path / "g", calibration=text, console=console)
    assert "Quantising" in screen.getvalue() and "8/8" in screen.getvalue()
    assert capfd.readouterr().out == ""


def test_bad_choices_are_refused_before_any_work(base, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load_parent", lambda *a: pytest.fail("loaded before checking"))
    (tmp_path / "there").mkdir()
    for options, message in (
        ({"quantize": "w2a2"}, "unknown quantisation 'w2a2'"),
        ({"rounding": "up"}, "unknown rounding 'up'"),
        ({"rounding": "nearest", "quantize": "w4a8"}, "is for w8a8, not w4a8"),
        ({"target": "toaster"}, "unknown target 'toaster'"),
        ({"family": "nobody"}, "unknown guard family"),
        ({"out": tmp_path / "there"}, "exists already"),
        ({"calibration": tmp_path / "none"}, "calibration text"),
    ):
        with pytest.raises(AegisError, match=message):
            export_guard(*base, **{"out": tmp_path / "new", **options})
    assert os.listdir(tmp_path) == ["there"]


def test_a_failing_export_leaves_the_old_guard(base, text, tmp_path, tiny_policy, monkeypatch):
    out = tmp_path / "guard"
    export(base, text, out, tiny_policy)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    monkeypatch.setattr(aegis, "save_policy", _fail)
    with pytest.raises(RuntimeError, match="power cut"):
        export(base, text, out, tiny_policy, force=True)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before and os.listdir(tmp_path) == ["guard"]


def _fail(*arguments):
    raise RuntimeError("power cut")


def test_a_policy_longer_than_the_context_is_refused(base, text, tmp_path):
    from aegis_edge.policy import Category, Policy

    wordy = Policy(tuple(Category(f"Topic {i}", description="lock" + " lock" * 100) for i in range(20)))
    with pytest.raises(AegisError, match="no room"):
        export(base, text, tmp_path / "guard", wordy)
    assert not (tmp_path / "guard").exists()


def test_a_base_without_the_family_s_tokens_is_refused(text, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    write_base(tmp_path / "base", tokenizer)
    with pytest.raises(AegisError, match="no control token"):
        export_guard(str(tmp_path / "base"), "none", out=tmp_path / "g", calibration=text)


def test_quantised_norms_are_folded_and_bf16_keeps_them(base, text, tmp_path, tiny_policy):
    for scheme in ("w8a8", "bf16"):
        export(base, text, tmp_path / scheme, tiny_policy, quantize=scheme)
    folded, kept = (set(Artifact.open(tmp_path / s).tensor_names()) for s in ("w8a8", "bf16"))
    assert "final_norm.weight" in kept and "final_norm.weight" not in folded
    manifest = json.loads((tmp_path / "bf16" / MANIFEST).read_text())
    assert manifest["quantization"]["hadamard_block"] == 0


def test_a_nan_in_the_base_is_found(base, text, tmp_path, tiny_policy, monkeypatch):
    def poisoned(*arguments):
        parent = load_parent(*arguments)
        parent.model.model.embed_tokens.weight.data[7, 3] = torch.nan
        return parent

    monkeypatch.setattr(pipeline, "load_parent", poisoned)
    with pytest.raises(AegisError):
        export(base, text, tmp_path / "guard", tiny_policy, quantize="bf16")
    assert not (tmp_path / "guard").exists()
