"""The cuda scorer in Triton's interpreter: the reference's logits, on trees of every shape."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_artifact import write_tiny
from triton_kernels import compiled, poisoned

from aegis_edge import Guard
from aegis_edge.artifact import Artifact
from aegis_edge.errors import ContextError, ScorerError
from aegis_edge.guard import open_scorer
from aegis_edge.scoring import Segment, cuda_pass
from aegis_edge.scoring import cuda as module
from aegis_edge.scoring.cuda import CudaScorer
from aegis_edge.scoring.reference import ReferenceScorer

ROOT = list(range(3, 40))


def segment(ids, parent, slots=()):
    return Segment(np.array(ids, np.int32), parent, tuple(slots))


def close(a, b, tolerance=1e-4):
    """fp32 over other shapes sums in another order; logits here are of size 1."""
    return a.shape == b.shape and bool(np.abs(a - b).max() < tolerance)


@pytest.fixture(scope="module", autouse=True)
def _poisoned():
    with poisoned():
        yield


@pytest.fixture(scope="module")
def scorers(tiny_llama, tiny_head):
    """(cuda, reference) over one model."""
    weight, bias = (torch.from_numpy(part) for part in tiny_head)
    return (
        CudaScorer(tiny_llama, weight, bias, ROOT),
        ReferenceScorer.from_parent(tiny_llama, weight, bias, ROOT),
    )


BRANCHES = [
    segment([50, 51, 52], 0, [2]),
    segment([60, 61], 1, [0, 1]),
    segment([70, 71, 72, 73], 0, [3, 0]),
    segment([80], 2),
    segment([90], 1, [0]),
]
MORE = [segment([90, 91], 4, [1]), segment([90, 91], 3, [1]), segment([80], 1, [0])]


def test_every_path_of_a_branching_tree_reads_as_the_reference_does(scorers):
    trees = [scorer.tree() for scorer in scorers]
    for segments in (BRANCHES, MORE):
        assert close(*(tree.extend(segments) for tree in trees))


def test_nodes_that_nobody_reads_are_there_for_later_ones(scorers):
    trees = [scorer.tree() for scorer in scorers]
    for tree in trees:
        assert tree.extend([segment([50], 0), segment([51, 52], 1)]).shape == (0, 6)
        assert tree.extend([]).shape == (0, 6)
    assert close(*(tree.extend([segment([53], 2, [0])]) for tree in trees))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_truncating_forgets_the_last_nodes_and_reuses_their_room(scorers, kept):
    """Nodes stand in depth-first order on the device, so that what is cut may lie between what is kept."""
    trees = [scorer.tree() for scorer in scorers]
    for tree in trees:
        tree.extend(BRANCHES)
        tree.truncate(kept)
    again = [segment([9] * 7, kept - 1, [6]), segment([8], 0, [0])]
    assert close(*(tree.extend(again) for tree in trees))
    with pytest.raises(ScorerError, match="can not keep 9 of"):
        trees[0].truncate(9)


def test_many_siblings_grow_the_pool(scorers):
    rng = np.random.default_rng(2)
    many = [segment(rng.integers(3, 384, 1 + i % 7), 0, [0]) for i in range(40)]
    assert close(*(scorer.tree().extend(many) for scorer in scorers))


def test_another_root_is_computed_and_kept(scorers):
    other = np.array([5, 6, 7], np.int32)
    one = [segment([50, 51], 0, [1])]
    assert close(*(scorer.tree(other).extend(one) for scorer in scorers))
    assert not close(scorers[0].tree(other).extend(one), scorers[0].tree().extend(one), 1e-2)
    assert list(scorers[0]._roots) == [other.tobytes()]


def test_inverse_without_the_tree_a_node_reads_something_else(scorers, monkeypatch):
    right = cuda_pass.plan

    def wrong(ranges, parents, lengths, base, queries):
        return right(ranges, [-1, *(0 for _ in parents[1:])], lengths, base, queries)  # all are siblings

    monkeypatch.setattr(cuda_pass, "plan", wrong)
    logits = [scorer.tree().extend(BRANCHES) for scorer in scorers]
    assert close(logits[0][:1], logits[1][:1]) and not close(*logits, 1e-2)


@pytest.mark.parametrize(
    ("segments", "error", "message"),
    [
        ([segment([-1], 0)], ScorerError, "an id lies outside the vocabulary of"),
        ([segment([1], 2)], ScorerError, "node 1 hangs from node 2"),
        ([segment([1] * 512, 0)], ContextError, "a path of 549 tokens does not fit a context of 512"),
    ],
)
def test_a_malformed_call_is_refused_and_leaves_the_tree_as_it_was(scorers, segments, error, message):
    tree = scorers[0].tree()
    with pytest.raises(error, match=message):
        tree.extend(segments)
    with pytest.raises(ScorerError, match="node 1 hangs from node 1"):
        tree.extend([segment([1], 1)])


def test_a_failing_pass_is_a_scorer_error_and_leaves_the_tree_as_it_was(scorers, monkeypatch):
    tree = scorers[0].tree()
    expected = tree.extend(BRANCHES)
    tree.truncate(1)

    def fails(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(module, "tree_attention", fails)
        with pytest.raises(ScorerError, match="the cuda scorer failed: CUDA out of memory"):
            tree.extend(BRANCHES)
    assert np.array_equal(tree.extend(BRANCHES), expected)


def test_a_head_that_does_not_fit_is_refused(tiny_llama):
    with pytest.raises(ScorerError, match=r"the head is \[6, 32\], expected \[6, 64\]"):
        CudaScorer(tiny_llama, torch.zeros(6, 32), torch.zeros(6), ROOT)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "bf16"])
def test_an_artefact_scores_as_the_reference(tmp_path, tiny_tokenizer, tiny_plan, tiny_policy, scheme):
    """In floating point, as the reference has its weights; integers are test_scoring_cuda_int8.py's."""
    write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy, scheme, bias=True)
    artifact = Artifact.open(tmp_path / "guard")
    scorers = (CudaScorer.from_artifact(artifact, int8=False), open_scorer(artifact, "reference"))
    a, b = (scorer.tree().extend(BRANCHES) for scorer in scorers)
    assert np.abs(b).max() > 0.5 and close(a, b)


def test_half_precision_is_near(tiny_llama, tiny_head, scorers):
    weight, bias = (torch.from_numpy(part) for part in tiny_head)
    half = CudaScorer(tiny_llama, weight, bias, ROOT, dtype="fp16").tree().extend(BRANCHES)
    assert 0 < np.abs(half - scorers[1].tree().extend(BRANCHES)).max() < 0.05


def test_a_guard_gives_the_reference_verdicts(tmp_path, tiny_tokenizer, tiny_plan, tiny_policy):
    write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy, "bf16")
    items = ["How do I pick a lock?", ("safe and weapons", "With a pick."), ""]
    a, b = (Guard.load(tmp_path / "guard", scorer=name).check_many(items) for name in ("cuda", "reference"))
    for x, y in zip(a, b, strict=True):
        assert (x.safe, [c.name for c in x.categories]) == (y.safe, [c.name for c in y.categories])
        assert x.prompt.margin == pytest.approx(y.prompt.margin, abs=1e-4)


def test_without_a_gpu_or_a_package_it_says_so():
    """In one process, since PyTorch takes its time: first Triton is missing, then only the GPU is."""
    made = compiled(
        """
import sys
from aegis_edge.errors import ScorerError
from aegis_edge.guard import open_scorer

def said(call):
    try:
        call()
    except ScorerError as error:
        print(error, "|", error.hint)

sys.modules["triton"] = None
said(lambda: open_scorer(None, "cuda"))
del sys.modules["triton"]
from aegis_edge.scoring.cuda import CudaScorer
said(lambda: CudaScorer(None, None, None, ()))
"""
    )
    package, gpu = made.stdout.splitlines()
    assert package == "the cuda scorer needs triton, which is not installed | pip install 'aegis-edge[cuda]'"
    if torch.version.cuda is None:
        assert gpu.startswith("the cuda scorer needs PyTorch for CUDA; ")
    elif not torch.cuda.is_available():
        assert gpu.startswith("the cuda scorer found no NVIDIA GPU")


# --- the default guard ---

PROMPTS = [
    "How do I pick a lock?",
    "What is a good name for a cat?",
    "Write a short letter that asks for a refund.",
    "Which plants grow well in the shade?",
]


@pytest.mark.slow
def test_the_default_guard_gives_the_reference_verdicts(base_folder, tmp_path):
    from aegis_edge.export.pipeline import export_guard

    adapter = Path(str(files("aegis_edge") / "adapters" / "aegis-edge-135m"))
    export_guard(str(base_folder), str(adapter), out=tmp_path / "guard", quantize="bf16")
    a, b = (Guard.load(tmp_path / "guard", scorer=name).check_many(PROMPTS) for name in ("cuda", "reference"))
    for x, y in zip(a, b, strict=True):
        assert x.safe == y.safe
        assert x.prompt.margin == pytest.approx(y.prompt.margin, abs=1e-3)
