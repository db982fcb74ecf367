"""The peers of the benchmark, each where it is installed, on a tiny random model: do they score as we do?"""

from __future__ import annotations

import numpy as np
import pytest
from bench_source import write_source
from tokenizers import Tokenizer

from aegis_edge.bench import parent
from aegis_edge.bench.contender import Source
from aegis_edge.bench.scorers import find, ort_genai
from aegis_edge.families import Plan
from aegis_edge.policy import Policy
from aegis_edge.scoring import Segment

MODULES = {
    "openvino": ("openvino", "nncf"),
    "ort_genai": ("onnxruntime_genai", "onnx", "onnx_ir"),
    "llama_cpp": ("llama_cpp",),
}
# How well a peer's logits go with the reference's at least, as far as its rounding allows on a random model.
CORRELATION = {
    "openvino-bf16": 0.99, "openvino-dynamic": 0.9, "openvino-w8a8": 0.9,
    "ort_genai-int8": 0.98, "ort_genai-int4": 0.8, "llama_cpp-q8_0": 0.98, "llama_cpp-q4_0": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> Source:
    return write_source(tmp_path_factory.mktemp("peers"), tiny_tokenizer, tiny_plan, tiny_policy)


@pytest.mark.parametrize("variant", CORRELATION)
def test_it_scores_like_the_reference(source: Source, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is seen, and cached it gives the same."""
    for module in MODULES[variant.split("-")[0]]:
        pytest.importorskip(module, reason=f"{module} is not installed: see docs/performance.md")
    # The builder's k_quant fails on matrices as small as these: int4 is rounded its plain way here.
    monkeypatch.setitem(ort_genai.VARIANTS, "int4", ())
    contender = find([variant])[0]
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
    assert np.corrcoef(found.ravel(), right.ravel())[0, 1] > CORRELATION[variant]
    np.testing.assert_allclose(scorer.tree().extend(segments), found, atol=0.02 * found.std())
    other = scorer.tree(source.root[: len(source.root) // 2]).extend(segments)
    assert np.abs(other - found).max() > 0.1
