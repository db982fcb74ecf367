"""A guard of a larger model's shape, its weights random: times do not depend on what a model has learnt.

python -m aegis_edge.bench.random_model OUT       -> OUT/random-1b, a Hugging Face folder, and OUT/guard

Its verdicts mean nothing. How far a peer's are from the parent's still tells whether it computes the same
model.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from aegis_edge.bench import prompts

# The shape of Llama-3.2-1B; the vocabulary is the tokenizer's in use, which a check does not multiply by.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
}
SEED = 0
DEVIATION = 0.02  # of every weight
MEASURED = 8  # prompts on which the export says how far it moved


def ready(folder: Path, size: str, tokenizer: Path | None = None) -> tuple[Path, Path]:
    """(guard, base) in `folder`, made on the first call: minutes, 3 GB on disk, 10 GB of memory for "1b".
    `tokenizer` as in `make_base`. Raises ExportError."""
    from aegis_edge.export.pipeline import export_guard

    guard, base = folder / "guard", folder / f"random-{size}"
    if not (guard / "aegis.json").is_file():
        make_base(base, SHAPES[size], tokenizer)
        text = folder / "prompts.jsonl"
        lines = [json.dumps({"prompt": talk.prompt}) for talk in prompts.sample(MEASURED)]
        text.write_text("\n".join(lines), encoding="utf-8")
        export_guard(str(base), "none", out=guard, quantize="w8a8", rounding="nearest", calibration=text)
    return guard, base


def make_base(folder: Path, shape: dict[str, Any], tokenizer: Path | None = None) -> None:
    """A LlamaForCausalLM in bf16 with weights N(0, 0.02), norms of one and a tied head, as a Hugging Face
    folder; the same weights each time.

    tokenizer  a tokenizer.json; None: the default base's
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from aegis_edge.export.base import DEFAULT_BASE, resolve_base

    source = tokenizer or resolve_base(DEFAULT_BASE).folder / "tokenizer.json"
    size = Tokenizer.from_file(str(source)).get_vocab_size()
    config = LlamaConfig(vocab_size=-(-size // 64) * 64, tie_word_embeddings=True, pad_token_id=None, **shape)
    model: Any = LlamaForCausalLM(config).bfloat16()
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0.0, DEVIATION, generator)
    model.save_pretrained(folder)
    shutil.copy(source, folder / "tokenizer.json")


if __name__ == "__main__":
    print(*ready(Path(sys.argv[1]), "1b"))
