"""llama.cpp as a peer, where llama-cpp-python is installed (in no extra: pip compiles it for minutes)."""

from __future__ import annotations

import numpy as np
import pytest
from bench_source import write_source
from tokenizers import Tokenizer

from aegis_edge.bench import parent
from aegis_edge.bench.contender import Source
from aegis_edge.bench.scorers import find
from aegis_edge.families import Plan
from aegis_edge.policy import Policy
from aegis_edge.scoring import Segment

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> Source:
    return write_source(tmp_path_factory.mktemp("llama_cpp"), tiny_tokenizer, tiny_plan, tiny_policy)


@pytest.mark.parametrize(("variant", "least"), [("q8_0", 0.98), ("q4_0", 0.8)])
def test_it_scores_like_the_reference(source: Source, variant: str, least: float) -> None:
    """As far as rounding allows on a random model; the policy is seen, and cached it gives the same."""
    contender = find([f"llama_cpp-{variant}"])[0]
    assert contender.missing() is None
    contender.prepare(source)
    segments = [
        Segment(np.arange(5, 25, dtype=np.int32), 0),
        Segment(np.array([9], np.int32), 1, (0,)),
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
