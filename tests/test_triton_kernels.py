"""The smaller kernels in Triton's interpreter against PyTorch in float64. Inputs are new in every run."""

from __future__ import annotations

import pytest
import torch
from triton_kernels import close, poisoned

from aegis_edge.triton.rms_norm import rms_norm
from aegis_edge.triton.rope import rope
from aegis_edge.triton.verdict_head import verdict_head, vocabulary_log_sum_exp

EPS = 1e-5
HALF = 2**-11  # largest relative error of rounding to fp16


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned():
        yield


def normed(x, weight):
    x = x.double()
    return x / (x.square().mean(1, keepdim=True) + EPS).sqrt() * weight.double()


# --- RMSNorm ---


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 100), (33, 576), (2, 5000)])
@pytest.mark.parametrize("add", [False, True])
def test_rms_norm(rows, width, add):
    x, weight = torch.randn(rows, width) * 3, torch.rand(width) + 0.5
    delta = torch.randn(rows, width) if add else None
    stream = x.clone()
    out = rms_norm(stream, weight, EPS, torch.empty(rows, width), delta)
    total = x if delta is None else x + delta
    assert torch.equal(stream, total)
    assert close(out, normed(total, weight), 1e-5)


def test_rms_norm_in_half_precision():
    """fp16 in, fp32 inside, so that only the result is rounded, by 2^-11 of itself."""
    x, weight = (torch.randn(9, 96) * 3).half(), torch.rand(96) + 0.5
    out = rms_norm(x, weight, EPS, torch.empty(9, 96, dtype=torch.float16))
    right = normed(x, weight)
    assert ((out.double() - right).abs() <= HALF * right.abs() + 1e-6).all()


def test_inverse_another_eps_or_a_missing_addend_shows():
    x, weight = torch.randn(4, 64) * 0.01, torch.ones(64)
    assert not close(rms_norm(x, weight, 10 * EPS, torch.empty(4, 64)), normed(x, weight), 1e-5)
    out = rms_norm(x.clone(), weight, EPS, torch.empty(4, 64), torch.randn(4, 64))
    assert not close(out, normed(x, weight), 1e-2)


def test_rms_norm_refuses_what_does_not_fit():
    x, weight = torch.zeros(4, 64), torch.ones(64)
    with pytest.raises(ValueError, match="must be contiguous and alike"):
        rms_norm(x, weight, EPS, torch.empty(4, 65))
    with pytest.raises(ValueError, match=r"the addend is \[3, 64\], expected \[4, 64\]"):
        rms_norm(x, weight, EPS, torch.empty(4, 64), torch.zeros(3, 64))


# --- rotary ---


def rotated(x, positions, heads, head_dim):
    """By complex numbers: (a + ib) e^(i angle)."""
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    turn = torch.polar(torch.ones(1).double(), positions.double()[:, None] * frequency)[:, None]
    split = x.double().view(len(x), -1, 2, head_dim // 2)
    z = torch.complex(split[:, :heads, 0], split[:, :heads, 1]) * turn
    done = split.clone()
    done[:, :heads, 0], done[:, :heads, 1] = z.real, z.imag
    return done.view(x.shape)


def table(context, head_dim):
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.outer(torch.arange(context).double(), frequency)
    return angles.cos().float(), angles.sin().float()


@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(1, 1, 64), (33, 5, 80), (17, 2, 256)])
def test_rope_turns_the_first_heads_in_place(tokens, heads, head_dim):
    x = torch.randn(tokens, (heads + 1) * head_dim)  # the last head are values, and not turned
    positions = torch.randint(0, 300, (tokens,), dtype=torch.int32)
    right = rotated(x, positions, heads, head_dim)
    given = x.clone()
    assert rope(given, positions, *table(300, head_dim), heads) is given
    assert close(given, right, 1e-5) and torch.equal(given[:, -head_dim:], x[:, -head_dim:])


def test_rope_in_half_precision():
    """One rounding, of a result that is at most sqrt(2) times its inputs' largest."""
    x = torch.randn(9, 128).half()
    positions = torch.randint(0, 300, (9,), dtype=torch.int32)
    right = rotated(x, positions, 2, 64)
    rope(x, positions, *table(300, 64), 2)
    assert ((x.double() - right).abs() <= HALF * right.abs() + 1e-6 * right.abs().max()).all()


def test_inverse_a_position_off_by_one_shows():
    x, positions = torch.randn(5, 64), torch.arange(5, dtype=torch.int32)
    right = rotated(x, positions, 1, 64)
    assert not close(rope(x, positions + 1, *table(300, 64), 1), right, 1e-2)
    with pytest.raises(ValueError, match="2 heads of 64 do not fit rows"):
        rope(x, positions, *table(300, 64), 2)


# --- the verdict head ---

GROUPS = {1: [0], 3: [0, 0, 0], 6: [0, 1, 0, 1, 2, 2], 23: [n % 4 for n in range(23)]}


def head(tokens, width, slots, rows, dtype=torch.float32):
    """Logits, log-probabilities and normed states, and what they should be."""
    hidden, norm = (torch.randn(tokens, width) * 2).to(dtype), torch.rand(width) + 0.5
    weight, bias = torch.randn(rows, width) / width**0.5, torch.randn(rows)
    where = torch.randint(0, tokens, (slots,), dtype=torch.int32)
    group = torch.tensor(GROUPS[rows], dtype=torch.int32)
    found = torch.empty(slots, rows), torch.empty(slots, rows), torch.empty(slots, width)
    verdict_head(hidden, where, norm, EPS, weight, bias, group, *found)
    h = normed(hidden[where.long()], norm)
    z = h @ weight.double().T + bias.double()
    logs = torch.empty_like(z)
    for number in set(GROUPS[rows]):
        logs[:, group == number] = torch.log_softmax(z[:, group == number], 1)
    return found, (z, logs, h)


@pytest.mark.parametrize(
    ("tokens", "width", "slots", "rows"), [(1, 64, 1, 1), (40, 576, 300, 6), (9, 1000, 5, 23), (5, 100, 2, 3)]
)
def test_verdict_head(tokens, width, slots, rows):
    for found, right in zip(*head(tokens, width, slots, rows), strict=True):
        assert close(found, right, 1e-5)


def test_verdict_head_of_half_precision_states():
    """The states are taken as they are and everything behind them is fp32: no tolerance of its own."""
    for found, right in zip(*head(9, 64, 4, 6, torch.float16), strict=True):
        assert close(found, right, 1e-5)


def test_large_logits_do_not_overflow_and_no_slots_do_nothing():
    hidden, weight = torch.ones(1, 64), torch.tensor([[100.0] * 64, [-100.0] * 64])
    group, slot = torch.zeros(2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    logits, logs = torch.empty(1, 2), torch.empty(1, 2)
    verdict_head(
        hidden, slot, torch.ones(64), EPS, weight, torch.zeros(2), group, logits, logs, torch.empty(1, 64)
    )
    assert logs[0, 0] == 0 and logs[0, 1] == pytest.approx(-12800, rel=1e-4)
    none = torch.empty(0, 2)
    verdict_head(
        hidden, slot[:0], torch.ones(64), EPS, weight, torch.zeros(2), group, none, none, torch.empty(0, 64)
    )
    with pytest.raises(ValueError, match=r"hidden states \[1, 63\] do not fit a head \[2, 64\]"):
        verdict_head(hidden[:, :63], slot, *(hidden, EPS, weight, none, group, logits, logs, hidden))


def test_inverse_other_groups_or_slots_show():
    (logits, logs, states), (z, _, h) = head(40, 64, 5, 6)
    assert not close(logs, torch.log_softmax(z, 1), 1e-2)
    assert not close(states.roll(1, 0), h, 1e-2) and not close(logits.roll(1, 1), z, 1e-2)


@pytest.mark.parametrize(
    ("slots", "width", "tokens"), [(1, 64, 1), (3, 100, 1000), (17, 64, 9000), (2, 576, 333)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_sum_exp_of_the_vocabulary(slots, width, tokens, dtype):
    """bf16 rows are read as they are and multiplied in fp32."""
    states, rows = torch.randn(slots, width) * 3, torch.randn(tokens, width).to(dtype)
    right = torch.logsumexp(states.double() @ rows.double().T, 1)
    assert close(vocabulary_log_sum_exp(states, rows), right, 1e-5)
    if tokens > 1:  # inverse: one row less is seen
        best = int((states[0].double() @ rows.double().T).argmax())
        rows[best] = 0
        assert not close(vocabulary_log_sum_exp(states, rows), right, 1e-5)
