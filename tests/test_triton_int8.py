"""int8 rows and their product in Triton's interpreter: integers to the bit, the rest against PyTorch in
float64. Inputs are new in every run."""

from __future__ import annotations

import pytest
import torch
from triton_kernels import close, compiled, poisoned, wide_blocks

from aegis_edge.export.quantise import LOW_STEPS, as_seen
from aegis_edge.triton.int8_gemm import int8_gemm
from aegis_edge.triton.int8_rows import MAX_WIDTH, Digits, int8_rows

EPS = 1e-5


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned():
        yield


def fine_rows(count: int, rows: int) -> tuple[torch.Tensor, int]:
    """low_of int32 [count] where every third row has a second digit, in an order that is not theirs; how
    many."""
    chosen = torch.arange(0, rows, 3)[torch.randperm((rows + 2) // 3)]
    low_of = torch.full((count,), -1, dtype=torch.int32)
    low_of[chosen] = torch.arange(len(chosen), dtype=torch.int32)
    return low_of, len(chosen)


def value(rows: Digits) -> torch.Tensor:
    """What the digits stand for, float64 [T, K]."""
    whole = rows.values.double() * rows.scales.double()[:, None]
    has = rows.low_of >= 0
    at = rows.low_of[has].long()
    whole[has] += rows.low[at].double() * rows.low_scales[at].double()[:, None]
    return whole


def normed(x, weight):
    x = x.double()
    return x / (x.square().mean(1, keepdim=True) + EPS).sqrt() * weight.double()


def sylvester(x, block):
    """The definition: entry (i, j) is (-1) to the number of ones in i & j, over sqrt(block)."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(block)] for i in range(block)]
    return (x.double().unflatten(1, (-1, block)) @ torch.tensor(signs).double() / block**0.5).flatten(1)


def within_half_a_step(rows: Digits, right: torch.Tensor) -> bool:
    """Each number is the nearest multiple of its row's step, the first digit's or the second's."""
    step = right.abs().amax(1, keepdim=True) / 127
    fine = (rows.low_of >= 0)[:, None]
    step = torch.where(fine, step / LOW_STEPS, step)
    # Where the quotient is half a step to within fp32's roundings of it, either side will do: at most six of
    # them (norm, weight, bound, quotient) of 2^-24 at 127, 4.5e-5 of a step, 254 times that of a second one.
    slack = torch.where(fine, 4.5e-5 * LOW_STEPS, 4.5e-5).double()
    return bool(((value(rows) - right).abs() <= (0.5 + slack) * step + 1e-12).all())


# --- rows ---


@pytest.mark.parametrize(("count", "width"), [(1, 16), (7, 96), (33, 576), (3, 5008)])
@pytest.mark.parametrize("add", [False, True])
def test_a_norm_and_its_rounding(count, width, add):
    x, weight = torch.randn(count, width) * 3, torch.rand(width) + 0.5
    delta = torch.randn(count, width) if add else None
    stream, (low_of, fine) = x.clone(), fine_rows(count, count)
    rows = int8_rows(stream, low_of, fine, weight=weight, eps=EPS, delta=delta)
    total = x if delta is None else x + delta
    assert torch.equal(stream, total)
    assert within_half_a_step(rows, normed(total, weight))
    assert rows.values.dtype == torch.int8 and (rows.values.abs().amax(1) == 127).all()


@pytest.mark.parametrize(("count", "width", "block"), [(1, 16, 16), (5, 96, 32), (3, 1536, 512), (2, 64, 64)])
def test_hadamard_and_its_rounding(count, width, block):
    x, (low_of, fine) = torch.randn(count, width), fine_rows(count, count)
    assert within_half_a_step(int8_rows(x, low_of, fine, hadamard=block), sylvester(x, block))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_plain_rows_are_the_runtime_s_own(dtype):
    """The export simulates the compiled runtime: the same digits come out."""
    x, (low_of, fine) = torch.randn(9, 80).to(dtype), fine_rows(9, 9)
    x[4] = 0
    rows = int8_rows(x, low_of, fine)
    apart = (value(rows).float() - as_seen(x.float(), low_of >= 0)).abs()
    scale = rows.scales[:, None].clamp(min=1e-9)
    halfway = ((x.float() / scale).frac().abs() - 0.5).abs() < 1e-4  # either digit is right there
    assert halfway.float().mean() < 0.05
    step = torch.where(low_of[:, None] >= 0, scale / 254, scale * halfway)  # of the last digit
    assert (apart <= 1.01 * step + 1e-6).all()
    assert rows.scales[4] == 0 and (rows.values[4] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_never_a_number_again(bad):
    x, low_of = torch.randn(3, 64), torch.tensor([0, -1, 1], dtype=torch.int32)
    x[1, 7] = x[2, 3] = bad
    out = int8_gemm(int8_rows(x, low_of, 2), torch.ones(4, 64, dtype=torch.int8), torch.ones(4))
    assert out[0].isfinite().all() and out[1:].isnan().all()


def test_inverse_another_block_or_a_missing_digit_shows():
    x, (low_of, fine) = torch.randn(5, 64), fine_rows(5, 5)
    rows = int8_rows(x, low_of, fine, hadamard=32)
    assert not within_half_a_step(rows, sylvester(x, 64))
    rows.low.zero_()
    assert not within_half_a_step(rows, sylvester(x, 32))


def test_rows_that_do_not_fit_are_refused():
    x, low_of = torch.zeros(4, 64), torch.full((4,), -1, dtype=torch.int32)
    for arguments, options, message in (
        ((torch.zeros(4, MAX_WIDTH + 16), low_of, 0), {}, "contiguous, up to 8192 wide"),
        ((x.T, low_of, 0), {}, "must be contiguous"),
        ((x, low_of[:3], 0), {}, "a low_of each"),
        ((x, low_of, 0), {"delta": torch.zeros(3, 64)}, r"the addend is \[3, 64\]"),
        ((x, low_of, 0), {"hadamard": 48}, "Hadamard blocks of 48 do not divide rows of 64"),
        ((x, low_of, 0), {"hadamard": 128}, "Hadamard blocks of 128"),
    ):
        with pytest.raises(ValueError, match=message):
            int8_rows(*arguments, **options)


# --- the product ---


def drawn(count, columns, depth):
    """Digits and a weight of random integers, the largest ones among them."""
    low_of, fine = fine_rows(count, count)

    def integers(*shape):
        return torch.randint(-127, 128, shape).to(torch.int8)

    scales = torch.rand(count) + 0.1
    rows = Digits(integers(count, depth), scales, integers(fine, depth), torch.empty(fine), low_of)
    at = low_of >= 0
    rows.low_scales[low_of[at].long()] = scales[at] / LOW_STEPS
    return rows, integers(columns, depth), torch.rand(columns) * 0.01 + 0.001


@pytest.mark.parametrize(
    ("count", "columns", "depth"), [(1, 16, 16), (65, 80, 96), (300, 48, 64), (33, 192, 576), (2, 16, 1536)]
)
def test_the_product_is_exact_but_for_one_rounding(count, columns, depth):
    rows, weight, scale = drawn(count, columns, depth)
    bias = torch.randn(columns)
    out = int8_gemm(rows, weight, scale, bias=bias)
    right = value(rows) @ (weight.double() * scale.double()[:, None]).T + bias.double()
    assert out.dtype == torch.float32 and close(out, right, 1e-6)


def test_sums_are_int32_over_all_of_k():
    """The largest sum there is, 8192 * 127 * 127 = 132,128,768, one that is odd and beyond 2^24, and one
    that cancels to 1: sums in fp32 on the way would lose what the last two differ by."""
    depth = MAX_WIDTH
    a = torch.full((3, depth), 127, dtype=torch.int8)
    a[1, 5] = 126
    a[2, depth // 2 :] = -127
    a[2, -1] = -126
    none = torch.full((3,), -1, dtype=torch.int32)
    rows = Digits(a, torch.ones(3), a[:0], torch.empty(0), none)
    weight = torch.full((16, depth), 127, dtype=torch.int8)
    weight[1] = 1
    out = int8_gemm(rows, weight, torch.ones(16))
    sums = a.long() @ weight.long().T
    assert sums[0, 0] == 132_128_768 and sums[2, 1] == 1
    assert torch.equal(out, sums.float())  # the one rounding, of the finished sum


@pytest.mark.parametrize(("count", "inner", "depth"), [(1, 16, 32), (70, 96, 64)])
def test_gate_and_up(count, inner, depth):
    rows, weight, scale = drawn(count, 2 * inner, depth)
    gate, up = (value(rows) @ (weight.double() * scale.double()[:, None]).T).chunk(2, dim=1)
    right = gate / (1 + (-gate).exp()) * up
    assert close(int8_gemm(rows, weight, scale, silu=True), right, 1e-5)


def test_wide_blocks_change_no_bit():
    x, weight = torch.randn(70, 192) * 3, torch.rand(192) + 0.5
    rows, matrix, scale = drawn(70, 160, 1100)
    rows.values[0], matrix[0] = 127, -127  # the largest sum

    def found():
        digits = int8_rows(x.clone(), *fine, weight=weight, eps=EPS)
        return [
            *vars(digits).values(),
            int8_gemm(rows, matrix, scale),
            int8_gemm(rows, matrix, scale, silu=True),
        ]

    fine = fine_rows(70, 70)
    narrow = found()
    with wide_blocks():
        wide = found()
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


def test_half_precision_rounds_once():
    rows, weight, scale = drawn(9, 32, 64)
    out = int8_gemm(rows, weight, scale, dtype=torch.float16)
    right = value(rows) @ (weight.double() * scale.double()[:, None]).T
    assert ((out.double() - right).abs() <= 2**-11 * right.abs() + 1e-6 * right.abs().max()).all()


def test_inverse_the_second_digit_counts():
    rows, weight, scale = drawn(9, 32, 64)
    right = value(rows) @ (weight.double() * scale.double()[:, None]).T
    rows.low.zero_()
    assert not close(int8_gemm(rows, weight, scale), right, 1e-4)


def test_what_does_not_fit_is_refused():
    rows, weight, scale = drawn(4, 32, 64)
    for given, message in (
        ((rows, weight[:, :32].contiguous(), scale), r"do not fit a weight \[32, 32\]"),
        ((rows, weight, scale[:31]), "do not fit a weight"),
        ((rows, weight.float(), scale), r"the weight is torch\.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            int8_gemm(*given)


# --- compiled ---

TENSOR_CORES = """
import triton
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
from aegis_edge.triton import aot, int8_gemm
from aegis_edge.triton.spec import Shape

kept = []
compile = triton.compile
aot.triton.compile = lambda *a, **k: kept.append(compile(*a, **k)) or kept[-1]
shape = Shape(576, 9, 3, 64, 1536, 512, False, 6, "bf16")
for arch in aot.ARCHS:
    aot.compile_spec(int8_gemm.specs(shape)[0], arch)
    text = kept[-1].asm["ptx"]
    print(arch, "s32.s8.s8" in text or "kind::i8" in text)
"""


def test_every_architecture_multiplies_on_its_tensor_cores():
    lines = compiled(TENSOR_CORES).stdout.splitlines()
    assert len(lines) == 7 and all(line.endswith("True") for line in lines), lines
