from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_artifact import write_tiny

from aegis_edge.artifact import Artifact
from aegis_edge.errors import ContextError, ScorerError
from aegis_edge.scoring import Segment, TreeShape
from aegis_edge.scoring import reference as module
from aegis_edge.scoring.dequantise import decoder_of
from aegis_edge.scoring.reference import ReferenceScorer

ROOT = list(range(3, 40))


def segment(ids, parent, slots=()):
    return Segment(np.array(ids, np.int32), parent, tuple(slots))


@pytest.fixture(scope="module")
def scorer(tiny_llama, tiny_head):
    weight, bias = (torch.from_numpy(part) for part in tiny_head)
    return ReferenceScorer.from_parent(tiny_llama, weight, bias, ROOT)


def flat(llama, head, path):
    """Logits after every token of one plain sequence: no mask, no tree, transformers' own defaults."""
    with torch.inference_mode():
        hidden = llama(input_ids=torch.tensor([path])).last_hidden_state[0]
    return (hidden @ torch.from_numpy(head[0]).T + torch.from_numpy(head[1])).numpy()


def close(a, b, tolerance=1e-4):
    """fp32 over other shapes sums in another order; logits here are of size 1."""
    return a.shape == b.shape and bool(np.abs(a - b).max() < tolerance)


def test_a_node_reads_what_its_path_alone_would_read(scorer, tiny_llama, tiny_head):
    """Every path of a branching tree, over two calls, equals the plain model on that path's ids."""
    a, b, c, d, e = [50, 51, 52], [60, 61], [70, 71, 72, 73], [80], [90, 91]
    tree = scorer.tree()
    first = tree.extend([segment(a, 0, [2]), segment(b, 1, [0, 1]), segment(c, 0, [3]), segment(d, 2)])
    assert close(first[0:1], flat(tiny_llama, tiny_head, ROOT + a)[-1:])
    assert close(first[1:3], flat(tiny_llama, tiny_head, ROOT + a + b)[-2:])
    assert close(first[3:4], flat(tiny_llama, tiny_head, ROOT + c)[-1:])
    second = tree.extend([segment(e, 4, [1]), segment(e, 3, [1]), segment(d, 1, [0])])
    assert close(second[0:1], flat(tiny_llama, tiny_head, ROOT + a + b + d + e)[-1:])
    assert close(second[1:2], flat(tiny_llama, tiny_head, ROOT + c + e)[-1:])
    assert close(second[2:3], flat(tiny_llama, tiny_head, ROOT + a + d)[-1:])


@pytest.mark.parametrize("broken", ["positions", "mask"])
def test_inverse_packing_without_tree_positions_or_mask_reads_something_else(
    scorer, tiny_llama, tiny_head, monkeypatch, broken
):
    right = module._positions_and_mask

    def wrong(lengths, parents):
        positions, mask = right(lengths, parents)
        count = len(positions)
        if broken == "positions":
            return torch.arange(count), mask
        return positions, torch.full((count, count), float("-inf")).triu(1)

    monkeypatch.setattr(module, "_positions_and_mask", wrong)
    logits = scorer.tree().extend([segment([50, 51, 52], 0, [2]), segment([70, 71], 0, [1])])
    assert not close(logits[1:], flat(tiny_llama, tiny_head, [*ROOT, 70, 71])[-1:], 1e-2)


def test_neighbours_do_not_change_a_node(scorer):
    alone = scorer.tree().extend([segment([50, 51], 0, [1])])
    among = scorer.tree().extend([segment([9] * 30, 0, [3]), segment([50, 51], 0, [1]), segment([8] * 5, 2)])
    assert close(alone, among[1:2])


def test_a_call_that_reads_nothing_still_adds_its_nodes(scorer, tiny_llama, tiny_head):
    tree = scorer.tree()
    assert tree.extend([segment([50], 0)]).shape == (0, 6)
    assert tree.extend([]).shape == (0, 6)
    read = tree.extend([segment([51], 1, [0])])
    assert close(read, flat(tiny_llama, tiny_head, [*ROOT, 50, 51])[-1:])


def test_slots_come_in_segment_order_then_slot_order(scorer):
    read = scorer.tree().extend([segment([50, 51, 52], 0, [2, 0]), segment([60], 0, [0])])
    sorted_slots = scorer.tree().extend([segment([50, 51, 52], 0, [0, 2]), segment([60], 0, [0])])
    assert np.array_equal(read, sorted_slots[[1, 0, 2]])


def test_truncate_forgets_the_last_nodes(scorer):
    tree = scorer.tree()
    tree.extend([segment([50], 0), segment([60], 1)])
    tree.truncate(2)
    again = tree.extend([segment([70, 71], 1, [1])])
    assert np.array_equal(again, scorer.tree().extend([segment([50], 0), segment([70, 71], 1, [1])]))
    with pytest.raises(ScorerError, match="can not keep 9 of 3 nodes"):
        tree.truncate(9)
    with pytest.raises(ScorerError, match="can not keep 0 of 3 nodes"):
        tree.truncate(0)


def test_another_root_is_computed_afresh(scorer, tiny_llama, tiny_head):
    other = np.array([5, 6, 7], np.int32)
    read = scorer.tree(other).extend([segment([50], 0, [0])])
    assert close(read, flat(tiny_llama, tiny_head, [5, 6, 7, 50])[-1:])


def test_a_cached_root_changes_nothing(scorer, tiny_llama, tiny_head):
    weight, bias = (torch.from_numpy(part) for part in tiny_head)
    cached = ReferenceScorer.from_parent(tiny_llama, weight, bias, ROOT, cache_root=True)
    segments = [segment([50, 51], 0, [1]), segment([60], 1, [0]), segment([70], 0, [0])]
    expected = scorer.tree().extend(segments)
    for _ in range(2):  # the second call must not find what the first one left in the cache
        assert close(cached.tree().extend(segments), expected)


def test_bf16_is_near_and_keeps_its_rotary_frequencies(scorer, tiny_llama, tiny_head):
    weight, bias = (torch.from_numpy(part) for part in tiny_head)
    half = ReferenceScorer.from_parent(tiny_llama, weight, bias, ROOT, dtype="bf16")
    segments = [segment([50, 51], 0, [1])]
    difference = np.abs(half.tree().extend(segments) - scorer.tree().extend(segments)).max()
    assert 0 < difference < 0.2
    assert half._decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert tiny_llama.dtype == torch.float32  # the parent is copied, not changed


@pytest.mark.parametrize(
    ("segments", "error", "message"),
    [
        (
            [Segment(np.array([], np.int32), 0)],
            ScorerError,
            r"a node needs int32 ids \[n >= 1\], found int32\[0\]",
        ),
        ([Segment(np.array([1], np.int64), 0)], ScorerError, r"a node needs int32 ids .* found int64\[1\]"),  # type: ignore[arg-type]
        ([segment([[1]], 0)], ScorerError, r"a node needs int32 ids .* found int32\[1, 1\]"),
        ([segment([-1], 0)], ScorerError, "an id lies outside the vocabulary of"),
        ([segment([1_000_000], 0)], ScorerError, "an id lies outside the vocabulary of"),
        ([segment([1], 2)], ScorerError, "node 1 hangs from node 2, which does not exist yet"),
        ([segment([1], 1)], ScorerError, "node 1 hangs from node 1, which does not exist yet"),
        ([segment([1], -1)], ScorerError, "node 1 hangs from node -1, which does not exist yet"),
        ([segment([1, 2], 0, [2])], ScorerError, r"node 1 of 2 tokens has slots \(2,\)"),
        ([segment([1, 2], 0, [-1])], ScorerError, r"node 1 of 2 tokens has slots \(-1,\)"),
        ([segment([1] * 512, 0)], ContextError, "a path of 549 tokens does not fit a context of 512"),
        ([segment([1] * 400, 0), segment([1] * 76, 1)], ContextError, "a path of 513 tokens does not fit"),
    ],
)
def test_a_malformed_call_is_refused_and_leaves_the_tree_as_it_was(scorer, segments, error, message):
    tree = scorer.tree()
    with pytest.raises(error, match=message):
        tree.extend(segments)
    with pytest.raises(ScorerError, match="node 1 hangs from node 1"):
        tree.extend([segment([1], 1)])


def test_a_root_must_fit(scorer):
    with pytest.raises(ContextError, match="the policy has 513 tokens; the context holds 512"):
        scorer.tree(np.ones(513, np.int32))
    with pytest.raises(ScorerError, match="a node needs int32 ids"):
        scorer.tree(np.array([], np.int32))
    TreeShape(np.ones(512, np.int32), 512, 2)


def test_a_head_that_does_not_fit_is_refused(tiny_llama):
    with pytest.raises(ScorerError, match=r"the head is \[6, 32\], expected \[6, 64\]"):
        ReferenceScorer.from_parent(tiny_llama, torch.zeros(6, 32), torch.zeros(6), ROOT)


# --- from an artefact ---


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("w8a8", {}),
        ("w8a8", {"hadamard_block": 0}),
        ("w8a8", {"hadamard_block": 16, "bias": True}),
        ("w4a8", {}),
        ("bf16", {}),
        ("bf16", {"bias": True}),
    ],
)
def test_an_artefact_dequantises_to_its_llama(
    tmp_path, tiny_tokenizer, tiny_plan, tiny_policy, scheme, options
):
    expected = write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy, scheme, **options)
    found = decoder_of(Artifact.open(tmp_path / "guard"))
    state = found.state_dict()
    for name, tensor in expected.state_dict().items():
        # fp32 rounding of sums of up to 96 products of size 0.4
        assert torch.allclose(state[name], tensor, atol=1e-6, rtol=1e-6), name
    assert state.keys() == expected.state_dict().keys()
    ids = torch.tensor([list(range(3, 50))])
    with torch.inference_mode():
        assert torch.allclose(
            ReferenceScorer.from_artifact(Artifact.open(tmp_path / "guard"))._decoder(ids).last_hidden_state,
            expected(ids).last_hidden_state,
            atol=1e-4,
        )


def test_inverse_without_the_hadamard_transform_it_is_another_model(
    tmp_path, tiny_tokenizer, tiny_plan, tiny_policy, monkeypatch
):
    expected = write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy)
    monkeypatch.setattr("aegis_edge.scoring.dequantise._undo_hadamard", lambda weight, block: weight)
    state = decoder_of(Artifact.open(tmp_path / "guard")).state_dict()
    name = "layers.0.mlp.down_proj.weight"
    assert not torch.allclose(state[name], expected.state_dict()[name], atol=1e-2)
