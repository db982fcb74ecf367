"""ONNX Runtime GenAI as a peer, where it is installed (it comes with the `bench` extra)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench_source import write_source
from tokenizers import Tokenizer

from aegis_edge.bench import parent
from aegis_edge.bench.contender import Source
from aegis_edge.bench.scorers import find, ort_genai
from aegis_edge.errors import ScorerError
from aegis_edge.families import Plan
from aegis_edge.policy import Policy
from aegis_edge.scoring import Segment

for module in ("onnxruntime_genai", "onnx", "onnx_ir"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[bench]'")


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> Source:
    return write_source(tmp_path_factory.mktemp("ort_genai"), tiny_tokenizer, tiny_plan, tiny_policy)


@pytest.mark.parametrize(("bits", "least"), [("int8", 0.98), ("int4", 0.8)])
def test_it_scores_like_the_reference(
    source: Source, bits: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as rounding allows on a random model; the policy is seen, and cached it gives the same. The
    builder's k_quant fails on matrices as small as these: int4 is rounded its plain way here."""
    monkeypatch.setitem(ort_genai.VARIANTS, "int4", ())
    contender = find([f"ort_genai-{bits}"])[0]
    assert contender.missing() is None
    contender.prepare(source)
    segments = [
        Segment(np.arange(5, 25, dtype=np.int32), 0),
        Segment(np.array([9], np.int32), 1, (0,)),
        Segment(np.array([30, 31, 32], np.int32), 2, (2, 0)),
        Segment(np.arange(40, 47, dtype=np.int32), 0, (6,)),
    ]
    right = parent.reference(source).tree().extend(segments)
    scorer = contender.load(source, 1)
    found = scorer.tree().extend(segments)
    assert found.shape == right.shape
    assert np.corrcoef(found.ravel(), right.ravel())[0, 1] > least
    np.testing.assert_allclose(scorer.tree().extend(segments), found, atol=0.02 * found.std())
    other = scorer.tree(source.root[: len(source.root) // 2]).extend(segments)
    assert np.abs(other - found).max() > 0.1


def test_a_prompt_asked_again_is_computed_again(source: Source) -> None:
    """Only the policy stays from one call to the next; else a repeated check would be timed as one token."""
    contender = find(["ort_genai-int8"])[0]
    contender.prepare(source)
    scorer = contender.load(source, 1)
    engine, run = scorer._engine, []  # type: ignore[attr-defined]
    inner = engine._generator

    class Recording:
        def append_tokens(self, ids: np.ndarray) -> None:
            run.append(len(ids))
            inner.append_tokens(ids)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    engine._generator = Recording()
    tree, prompt = scorer.tree(), np.arange(5, 25, dtype=np.int32)
    leaves = [Segment(np.array([9], np.int32), 1, (0,)), Segment(np.array([10, 11], np.int32), 1, (1,))]
    first = tree.extend([Segment(prompt, 0), *leaves])
    assert run == [len(source.root) + 21, 2]  # the second leaf shares the prompt
    tree.truncate(1)
    np.testing.assert_array_equal(tree.extend([Segment(prompt, 0), *leaves]), first)
    assert run[2:] == [21, 2]


def test_a_builder_that_fails_is_an_error_with_its_last_words(source: Source) -> None:
    contender = find(["ort_genai-int4"])[0]
    broken = Source(source.guard, source.parent.parent / "broken", source.work)
    broken.parent.mkdir(exist_ok=True)
    (broken.parent / "config.json").write_text((source.parent / "config.json").read_text())
    (broken.parent / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ScorerError, match="builder failed on int4"):
        contender.prepare(broken)
