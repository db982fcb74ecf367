"""The cuda scorer on an artefact's own integers, in Triton's interpreter: what the compiled runtime defines,
and the reference's verdicts on 200 prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_scoring_cuda import BRANCHES
from tiny_artifact import write_tiny
from triton_kernels import poisoned, wide_blocks

from aegis_edge import Guard
from aegis_edge.artifact import Artifact
from aegis_edge.data.generate import generate
from aegis_edge.export.quantise import as_seen
from aegis_edge.scoring import cuda_layers
from aegis_edge.scoring.cuda import CudaScorer
from aegis_edge.scoring.reference import ReferenceScorer

BLOCK = 32


@pytest.fixture(scope="module", autouse=True)
def _poisoned():
    with poisoned():
        yield


@pytest.fixture(scope="module", params=["w8a8", "w4a8"])
def artifact(request, tmp_path_factory, tiny_tokenizer, tiny_plan, tiny_policy) -> Artifact:
    folder = tmp_path_factory.mktemp(request.param) / "guard"
    write_tiny(folder, tiny_tokenizer, tiny_plan, tiny_policy, request.param, BLOCK, bias=True)
    return Artifact.open(folder)


class Simulated(ReferenceScorer):
    """The reference with every matrix's input rounded to int8 and back: second digits for the root's rows
    and the slots, before `down` in the Hadamard transform's coordinates."""

    fine: torch.Tensor

    def logits(self, nodes, parents, slots):
        self.fine = torch.zeros(sum(map(len, nodes)), dtype=torch.bool)
        self.fine[: len(nodes[0])] = True
        self.fine[list(slots)] = True
        return super().logits(nodes, parents, slots)

    @classmethod
    def of(cls, artifact: Artifact, second_digits: bool = True) -> Simulated:
        made = cls.from_artifact(artifact)
        signs = [[(-1.0) ** (i & j).bit_count() for j in range(BLOCK)] for i in range(BLOCK)]
        matrix = torch.tensor(signs) / BLOCK**0.5  # its own inverse

        def turned(x):
            return (x.unflatten(-1, (-1, BLOCK)) @ matrix).flatten(-2)

        def before(name):
            def hook(module, given):
                fine = made.fine & second_digits
                if name.endswith("down_proj"):
                    return (turned(as_seen(turned(given[0][0]), fine))[None],)
                return (as_seen(given[0][0], fine)[None],)

            return hook

        for name, module in made._decoder.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(before(name))
        return made


def error(a, b):
    return float(np.abs(a - b).mean())


def test_it_computes_what_the_export_simulates(artifact):
    """A digit whose quotient lies at a half falls either way (the embeddings are bf16: their ratios often
    do), so the two agree to a share of what rounding to int8 itself moves, and not to the bit."""
    found, wanted, floating = (
        scorer.tree().extend(BRANCHES)
        for scorer in (
            CudaScorer.from_artifact(artifact),
            Simulated.of(artifact),
            ReferenceScorer.from_artifact(artifact),
        )
    )
    assert found.dtype == np.float32 and np.abs(found).max() > 0.5
    assert error(found, wanted) < 0.3 * error(floating, wanted)


def test_inverse_without_second_digits_it_is_something_else(artifact):
    found, wanted, coarse = (
        scorer.tree().extend(BRANCHES)
        for scorer in (
            CudaScorer.from_artifact(artifact),
            Simulated.of(artifact),
            Simulated.of(artifact, second_digits=False),
        )
    )
    assert error(found, wanted) < 0.1 * error(found, coarse)


def test_the_matrices_are_the_artefact_s_own(artifact):
    scorer = CudaScorer.from_artifact(artifact)
    for layer in scorer.layers:
        for part in cuda_layers.PARTS:
            matrix = getattr(layer, part)
            assert isinstance(matrix, cuda_layers.Int8) and matrix.weight.dtype == torch.int8
            assert matrix.hadamard == (BLOCK if part == "down" else 0)
    if artifact.manifest["quantization"]["scheme"] == "w8a8":
        stored = torch.from_numpy(artifact.tensor("layers.1.down.weight"))
        assert torch.equal(scorer.layers[1].down.weight, stored)


def test_what_does_not_fit_stays_in_floating_point(artifact, monkeypatch):
    """Inputs wider than a program's registers, here those of `down`, and the verdict is nearly the same."""
    right = CudaScorer.from_artifact(artifact).tree().extend(BRANCHES)
    monkeypatch.setattr(cuda_layers, "MAX_WIDTH", 64)
    scorer = CudaScorer.from_artifact(artifact)
    assert isinstance(scorer.layers[0].down, cuda_layers.Dense)
    assert isinstance(scorer.layers[0].o, cuda_layers.Int8)
    assert 0 < error(scorer.tree().extend(BRANCHES), right) < 0.01


def test_keys_of_an_earlier_pass_are_those_of_one_pass(artifact):
    tree = CudaScorer.from_artifact(artifact).tree()
    logits = np.concatenate([tree.extend(BRANCHES[:2]), tree.extend(BRANCHES[2:])])
    assert np.array_equal(logits, CudaScorer.from_artifact(artifact).tree().extend(BRANCHES))


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "seed", "most"), [("bf16", 3, 0), ("w8a8", 4, 2)])
def test_200_prompts_get_the_reference_s_verdicts(
    tmp_path, tiny_tokenizer, tiny_plan, tiny_policy, scheme, seed, most
):
    """All of them in floating point; in int8, beside weights multiplied out and inputs that are not rounded,
    all but near ties. Half of the prompts have responses."""
    count = 200
    write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy, scheme, seed=seed)
    texts = [text for _, text in generate(3 * count // 2, seed=5)]
    half = count // 2
    items = [*texts[:half], *zip(texts[half:count], texts[count:], strict=True)]
    with wide_blocks():
        found = Guard.load(tmp_path / "guard", scorer="cuda").check_many(items)
    wanted = Guard.load(tmp_path / "guard", scorer="reference").check_many(items)
    assert 0.1 < sum(verdict.safe for verdict in wanted) / count < 0.9
    differ = [x for x, y in zip(found, wanted, strict=True) if x.safe != y.safe]
    assert len(differ) <= most
