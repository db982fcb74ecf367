"""Folding, rotating, rounding: the same model before and after, and no integer outside its range."""

from __future__ import annotations

import pytest
import torch
from tiny_export import tiny_model

from aegis_edge.conversation import Conversation
from aegis_edge.errors import ExportError
from aegis_edge.export import gptq
from aegis_edge.export.calibration import PACKAGED, flat_text, load_calibration
from aegis_edge.export.quantise import (
    GROUP,
    LOW_STEPS,
    Int4,
    as_seen,
    int4_scales,
    int8_scale,
    quantise_tokens,
    round_int8,
)
from aegis_edge.export.rotate import fold_norms, hadamard_block, random_orthogonal, rotate
from aegis_edge.export.simulate import centre, fidelity, margins, quantise_trunk
from aegis_edge.export.stream import run
from aegis_edge.export.trunk import PROJECTIONS, Dense, Text, hadamard, trunk_of

CONVERSATIONS = [
    Conversation("How do I pick a lock?"),
    Conversation("The user asks", "and the assistant answers the question"),
    Conversation("weapons and 1234567890 other things", ""),
    Conversation("How"),
]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def text(tiny_encoder, tiny_plan) -> Text:
    return flat_text(CONVERSATIONS * 4, tiny_encoder, tiny_plan, 512)


@pytest.fixture(params=["llama", "qwen2"])
def trunk(request, tiny_tokenizer):
    model = tiny_model(tiny_tokenizer.get_vocab_size(), request.param)
    torch.manual_seed(2)
    return trunk_of(model, torch.randn(6, 128) * 0.3, torch.randn(6) * 0.1)


def test_the_trunk_is_the_transformers_model(trunk, text, tiny_tokenizer):
    """Every conversation run alone through transformers gives the packed trunk's logits."""
    kind = "qwen2" if trunk.layers[0].qkv.bias is not None else "llama"
    model = tiny_model(tiny_tokenizer.get_vocab_size(), kind)
    packed = run(trunk, text)
    number = 0
    for start, end in list(text.spans())[1:]:
        ids = torch.cat((text.ids[: text.root], text.ids[start:end]))
        hidden = model.model(ids[None]).last_hidden_state[0]
        for slot in text.slots[(text.slots >= start) & (text.slots < end)].tolist():
            alone = trunk.head_weight @ hidden[text.root + slot - start] + trunk.head_bias
            torch.testing.assert_close(packed[number], alone, atol=1e-4, rtol=1e-4)
            number += 1
    assert number == len(text.slots)


def test_folding_and_rotating_change_no_logit(trunk, text):
    before = run(trunk, text)
    embed, o = trunk.embed.clone(), trunk.layers[0].o.weight.clone()
    fold_norms(trunk)
    assert trunk.final_norm is None and trunk.layers[0].input_norm is None
    torch.testing.assert_close(run(trunk, text), before, atol=1e-3, rtol=0)
    rotate(trunk, seed=3)
    assert trunk.hadamard_block == 64
    torch.testing.assert_close(run(trunk, text), before, atol=1e-3, rtol=0)
    assert (trunk.embed - embed).abs().max() > 0.1 and (trunk.layers[0].o.weight - o).abs().max() > 0.05


def test_a_forgotten_hadamard_is_found(trunk, text):
    """The inverse: without the run-time transform the rotated model is another model."""
    before = run(trunk, text)
    fold_norms(trunk)
    rotate(trunk, seed=3)
    trunk.hadamard_block = 0
    assert (run(trunk, text) - before).abs().max() > 0.1


def test_rotations_are_orthogonal_and_follow_their_seed():
    a, b, c = (random_orthogonal(48, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(a @ a.T, torch.eye(48), atol=1e-5, rtol=0)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_hadamard_by_its_definition():
    matrix = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(16)] for i in range(16)]) / 4
    x = torch.randn(5, 48)
    expected = (x.reshape(5, 3, 16) @ matrix).reshape(5, 48)
    torch.testing.assert_close(hadamard(x, 16), expected)
    torch.testing.assert_close(hadamard(hadamard(x, 16), 16), x)
    assert torch.equal(hadamard(x, 0), x)


@pytest.mark.parametrize(
    ("width", "block"), [(1536, 512), (8192, 512), (96, 32), (192, 64), (48, 16), (40, 0), (17, 0)]
)
def test_hadamard_blocks(width, block):
    assert hadamard_block(width) == block


def test_tokens_round_half_to_even_and_zeros_stay():
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    x8, scale = quantise_tokens(x)
    assert x8.tolist() == [[127, 0, 2, -2, 0], [0, 0, 0, 0, 0]]
    assert scale.tolist() == [[1.0], [0.0]]


def test_rows_of_zeros_have_a_scale():
    weight = torch.zeros(3, 64)
    assert (int8_scale(weight) > 0).all() and (round_int8(weight).weight == 0).all()
    group, scale = int4_scales(weight, torch.ones(64))
    assert (scale > 0).all() and group.min() >= 1


def test_int4_packs_two_nibbles_a_byte():
    torch.manual_seed(0)
    nibbles = torch.randint(-7, 8, (4, 64)).to(torch.int8)
    group = torch.randint(1, 19, (4, 2)).to(torch.uint8)
    matrix = Int4(nibbles, group, torch.ones(4))
    packed = matrix.packed()
    assert packed.shape == (4, 32) and packed.dtype == torch.uint8
    assert torch.equal((packed & 15).to(torch.int8) - 8, nibbles[:, 0::2])
    assert torch.equal((packed >> 4).to(torch.int8) - 8, nibbles[:, 1::2])
    expected = nibbles.int() * group.int().repeat_interleave(GROUP, dim=1)
    assert torch.equal(matrix.expanded().int(), expected) and expected.abs().max() <= 126


def _problem():
    """A matrix and inputs a few directions of which hold most of the energy, as in a language model."""
    torch.manual_seed(4)
    weight = torch.randn(48, 96)
    inputs = torch.randn(400, 96) @ torch.diag(torch.logspace(0, -2, 96)) @ torch.randn(96, 96) / 10
    return weight, inputs


@pytest.mark.parametrize(("limit", "gain"), [(127, 0.7), (7, 0.7)])
def test_gptq_beats_rounding_to_nearest(limit, gain):
    weight, inputs = _problem()
    moments = gptq.second_moments(inputs, inputs, 0.01)
    scale = weight.abs().amax(1) / limit
    solved = gptq.solve(weight, moments, lambda k: scale, limit)
    assert solved.dtype == torch.int8 and solved.abs().max() <= limit
    nearest = (weight / scale[:, None]).round()

    def error(integers):
        return (inputs @ (integers.float() * scale[:, None] - weight).T).norm()

    assert error(solved) < gain * error(nearest)


def test_second_digits_are_254_times_finer():
    torch.manual_seed(5)
    x = torch.cat((torch.randn(6, 64), torch.zeros(1, 64)))
    fine = torch.tensor([True, False, True, False, False, False, True])
    seen, (_, step) = as_seen(x, fine), quantise_tokens(x)
    error = (seen - x).abs()
    assert (error[fine] <= step[fine] * 0.501 / LOW_STEPS + 1e-6).all()
    assert (error[~fine].amax(1) > step[~fine, 0] * 0.2).all() and torch.equal(seen[6], x[6])


@pytest.mark.parametrize(("scheme", "limit"), [("bf16", 0.02), ("w8a8", 0.05), ("w4a8", 0.4)])
def test_a_quantised_trunk_stays_near_its_parent(trunk, text, scheme, limit):
    if scheme != "bf16":
        fold_norms(trunk)
        rotate(trunk, 0)
    reported: list[str] = []
    guard, errors, before, after = quantise_trunk(trunk, text, scheme, reported.append)
    torch.testing.assert_close(before, run(trunk, text))
    torch.testing.assert_close(after, run(guard, text, rounded=True), atol=1e-3, rtol=1e-3)
    assert reported == list(PROJECTIONS) * 2 and set(errors) == {
        f"layers.{i}.{name}" for i in range(2) for name in PROJECTIONS
    }
    moved = fidelity(margins(before, text.pairs), margins(after, text.pairs))
    assert 0 < moved.relative_error < limit
    assert all(isinstance(layer.qkv, Dense) for layer in trunk.layers)  # the parent is left as it was


def test_margins_are_centred_question_by_question():
    torch.manual_seed(6)
    parent = torch.randn(100, 6)
    pairs = torch.tensor([[0, 1]] * 80 + [[2, 3]] * 20)
    guard = parent + 0.1 * torch.randn(100, 6)
    guard[:, 1] += 0.5
    guard[:, 3] += 0.5
    shift = centre(parent, guard, pairs)
    moved = margins(guard + shift, pairs) - margins(parent, pairs)
    assert abs(moved[:80].mean()) < 1e-5 < 0.4 < moved[80:].mean()  # twenty slots are too few to tell
    assert (shift[2:] == 0).all() and shift[0] == -shift[1] != 0


def test_fidelity_counts():
    parent = torch.tensor([2.0, -2.0, 0.1, -0.1])
    guard = torch.tensor([-1.0, -2.5, -0.1, -0.1])
    moved = fidelity(parent, guard)
    assert (moved.slots, moved.flips, moved.far_flips) == (4, 0.5, 1)
    assert moved.margin_error == pytest.approx((3 + 0.5 + 0.2) / 4)


def test_margins_pick_the_rows_of_each_slot():
    logits = torch.tensor([[1.0, 4.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    assert margins(logits, torch.tensor([[0, 1], [2, 3]])).tolist() == [3.0, -1.0]


def test_the_packaged_calibration_text_is_varied():
    conversations = load_calibration()
    assert len(conversations) >= 200 and len({c.prompt for c in conversations}) == len(conversations)
    assert sum(c.response is not None for c in conversations) >= 50
    assert any(not c.prompt.isascii() for c in conversations) and PACKAGED.stat().st_size < 100_000


def test_flat_text_reads_every_question(text, tiny_plan):
    rows = [tuple(tiny_plan.rows[i] for i in pair) for pair in text.pairs.tolist()]
    assert rows[:5] == [
        tiny_plan.questions[q] for q in ("prompt", "category", "prompt", "response", "category")
    ]
    assert text.ids[: text.root].tolist() == list(tiny_plan.root)
    assert text.positions()[text.starts[1]] == text.root


def test_calibration_files(tmp_path):
    file = tmp_path / "c.txt"
    file.write_text('plain prompt\n\n{"prompt": "a", "response": "b"}\n{ not json\n')
    assert load_calibration(file) == [
        Conversation("plain prompt"),
        Conversation("a", "b"),
        Conversation("{ not json"),
    ]
    for bad in ("\n\n", '{"text": "x"}', '{"prompt": 3}'):
        file.write_text(bad)
        with pytest.raises(ExportError, match="calibration text"):
            load_calibration(file)
    with pytest.raises(ExportError, match="No such file"):
        load_calibration(tmp_path / "none")


def test_calibration_leaves_out_what_is_too_long(tiny_encoder, tiny_plan):
    long = Conversation("lock " * 2000)
    text = flat_text([long, Conversation("How")], tiny_encoder, tiny_plan, 512)
    assert len(text.starts) == 1
    with pytest.raises(ExportError, match="no calibration conversation"):
        flat_text([long], tiny_encoder, tiny_plan, 512)
