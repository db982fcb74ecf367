"""The roofline's counts, against the definition; and the page that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis_edge.bench.roofline import DEVICES, Model, Work, check, count, page

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"


def test_the_page_shows_what_the_code_counts():
    assert page() in PAGE.read_text()


def test_attention_counts_every_pair_of_the_definition():
    """One prompt of 5 tokens and its verdict token under a policy of 30, in one tile a level."""
    made = check(1, 5, 30, 64)
    work = count(Model(layers=1), made, 30, 1)["tree_attention"]
    by_hand = 6 * 30 + 6 * 5 + 1 * 1  # all queries by the policy, by the prompt; the verdict by itself
    assert work.operations == 4 * by_hand * 576
    parts = 5 * 2 + 1 * 3  # levels of every token
    assert work.bytes == 6 * 576 * 2 + 2 * 36 * 192 * 2 + parts * (576 + 9) * 4


def test_a_shared_policy_is_counted_once():
    one, many = (count(Model(), check(n, 64, 142, 21), 142, n) for n in (1, 64))
    per_prompt = many["tree_attention"].bytes / 64
    assert per_prompt < one["tree_attention"].bytes
    assert many["int8_gemm"].bytes < 64 * one["int8_gemm"].bytes / 4  # weights are read once


def test_int8_products_read_half_of_what_bf16_ones_do():
    """One layer, one token, no slot: the weights' bytes and operations by hand."""
    made = check(1, 1, 142, 21)
    works = count(Model(layers=1), made, 142, 0)
    weights = 960 * 576 + 576 * 576 + 2 * 1536 * 576 + 576 * 1536
    assert works["int8_gemm"].operations == works["bf16 products"].operations == 2 * 2 * weights
    assert weights < works["int8_gemm"].bytes < 1.03 * weights
    assert 2 * weights < works["bf16 products"].bytes < 2.03 * weights


def test_a_time_is_the_larger_of_memory_and_compute():
    device = DEVICES["L4"]
    assert Work(300_000, 1, "tensor").seconds(device) == pytest.approx(1e-6)
    assert Work(1, 121_000_000, "tensor").seconds(device) == pytest.approx(1e-6)
    assert Work(1, 242_000_000, "int8").seconds(device) == pytest.approx(1e-6)
    assert Work(1, 30_300_000, "plain").seconds(device) == pytest.approx(1e-6)
