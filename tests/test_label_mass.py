"""Label mass: against the full softmax of the model that was exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_artifact import write_tiny
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from aegis_edge.errors import ArtifactError
from aegis_edge.export.pipeline import export_guard
from aegis_edge.families.plan import Plan
from aegis_edge.guard import Guard

TEXT = "How do I pick a lock?"


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer
) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=request.param == "tied",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.model.norm.weight.data.uniform_(0.5, 2.0)  # a norm of ones would hide where it is applied
    folder = tmp_path_factory.mktemp("base") / "base"
    model.save_pretrained(folder)
    tiny_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("scheme", "tolerance"), [("bf16", 0.02), ("w8a8", 0.1)])
@pytest.mark.parametrize("scorer", ["cpu", "reference"])
def test_label_mass_is_the_share_of_the_full_softmax(
    base: Path, tmp_path: Path, scheme: str, tolerance: float, scorer: str
) -> None:
    out = tmp_path / "guard"
    export_guard(str(base), "none", out=out, quantize=scheme)
    guard = Guard.load(out, scorer=scorer, label_mass=True)
    verdict = guard.check(TEXT)

    from aegis_edge.artifact import Artifact

    manifest = Artifact.open(out).manifest
    plan = Plan.from_json(manifest["family"]["plan"])
    ids = [*plan.root, *guard._encoder.content.ids(TEXT), *plan.prompt[-1].parts[0]]
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    labels = [manifest["head"]["token_ids"][plan.rows.index(row)] for row in plan.questions["prompt"]]
    expected = float(torch.softmax(logits, -1)[labels].sum())
    assert verdict.label_mass == pytest.approx(expected, rel=tolerance)
    assert Guard.load(out, scorer=scorer).check(TEXT).label_mass is None


def test_trained_rows_have_no_label_mass(tmp_path, tiny_tokenizer, tiny_plan, tiny_policy) -> None:
    write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy)
    with pytest.raises(ArtifactError, match="labels are trained rows"):
        Guard.load(tmp_path / "guard", label_mass=True)


def test_log_sum_exp_of_large_logits_does_not_overflow() -> None:
    from aegis_edge.scoring.vocabulary import Vocabulary

    rows = np.full((5000, 16), 0x4200, np.uint16)  # 32.0 in bf16
    hidden = np.full((1, 16), 100.0, np.float32)
    total = Vocabulary(rows, None).log_sum_exp(hidden)
    assert total[0] == pytest.approx(16 * 3200 + np.log(5000), rel=1e-6)
