"""OpenVINO as a peer, where it is installed (it comes with the `bench` extra)."""

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

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[bench]'")
pytest.importorskip("nncf", reason="NNCF is not installed: pip install '.[bench]'")


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> Source:
    return write_source(tmp_path_factory.mktemp("openvino"), tiny_tokenizer, tiny_plan, tiny_policy)


@pytest.mark.parametrize("variant", ["bf16", "dynamic", "w8a8"])
def test_it_scores_like_the_reference(source: Source, variant: str) -> None:
    """As far as int8 allows on a random model: the same order of sizes, and the policy is seen."""
    contender = find([f"openvino-{variant}"])[0]
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
    assert np.corrcoef(found.ravel(), right.ravel())[0, 1] > (0.99 if variant == "bf16" else 0.9)
    other = scorer.tree(source.root[: len(source.root) // 2]).extend(segments)
    assert np.abs(other - found).max() > 0.1
