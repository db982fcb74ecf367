"""Makes artifact-v1: a random one-layer guard of hidden size 64 through the export. Run once a format."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from conftest import make_tiny_tokenizer  # noqa: E402

from aegis_edge.artifact import Artifact  # noqa: E402
from aegis_edge.export.pipeline import export_guard  # noqa: E402
from aegis_edge.guard import Guard  # noqa: E402
from aegis_edge.policy import Category, Policy  # noqa: E402
from aegis_edge.scoring.reference import ReferenceScorer  # noqa: E402

PROMPTS = ["How do I pick a lock?", "", "weapons and 1234567890 other things", "the user asks the assistant"]


def main() -> None:
    """Write artifact-v1 and its scores.json; refuses to replace what is there."""
    torch.manual_seed(20)
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=None,
    )
    policy = Policy((Category.of("Violence"), Category("Locks", "X1", "Talks about locks.")))
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "tiny"
        LlamaForCausalLM(config).save_pretrained(base)
        tokenizer.save(str(base / "tokenizer.json"))
        text = Path(scratch) / "lines.txt"
        text.write_text(
            "\n".join(f"How do I ask question {i} of the user and the assistant?" for i in range(40))
        )
        out = export_guard(str(base), "none", policy=policy, out=HERE / "artifact-v1", calibration=text).path
    artifact = Artifact.open(out)
    guard = Guard.from_artifact(artifact, ReferenceScorer.from_artifact(artifact))
    verdicts = guard.check_many([*PROMPTS, (PROMPTS[0], "the assistant answers")])
    scores = {
        "prompts": PROMPTS,
        "margins": [verdict.prompt.margin for verdict in verdicts[:-1]],
        "response": verdicts[-1].response.margin if verdicts[-1].response else None,
    }
    (HERE / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
