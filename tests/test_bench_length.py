"""Cost against length: what is linear, what is attention, and what is neither."""

from __future__ import annotations

from typing import Any

import pytest

from aegis_edge.bench import length, tables


def _rows(
    cost: Any, policy: int = 10, lengths: tuple[int, ...] = (16, 128, 256, 512)
) -> list[dict[str, Any]]:
    row = {"kind": "time", "scorer": "x", "group": "bare", "policy_tokens": policy}
    return [{**row, "tokens": n, "p50_ms": cost(n, length.looked_at(n, policy))} for n in lengths]


def test_keys_looked_at() -> None:
    assert length.looked_at(3, 5) == 6 + 7 + 8


@pytest.mark.parametrize("attention", [0.0, 1e-4])
def test_a_linear_cost_with_attention_is_explained(attention: float) -> None:
    (row,) = length.rows(_rows(lambda n, seen: 0.25 * n + attention * seen))
    assert row["tokens"] == [128, 256, 512] and row["deviation"] < 1e-3
    whole = 0.25 * 512 + attention * length.looked_at(512, 10)
    assert row["attention_share"] == pytest.approx(attention * length.looked_at(512, 10) / whole, abs=1e-3)
    assert (row["growth"] > 0.05) == (attention > 0)


def test_what_is_neither_is_told() -> None:
    (row,) = length.rows(_rows(lambda n, seen: 0.25 * n * (1.4 if n == 256 else 1)))
    assert row["deviation"] > 0.1
    (row,) = length.rows(_rows(lambda n, seen: 20 + 0.25 * n))  # dearer when short: no negative attention
    assert row["attention_share"] == 0 and row["growth"] < 0 and row["deviation"] > 0.1


def test_two_lengths_say_nothing() -> None:
    assert length.rows(_rows(lambda n, seen: n, lengths=(16, 128, 512))) == []
    (table,) = [
        t for t in tables.tables(length.rows(_rows(lambda n, seen: n))) if t.title == "Cost against length"
    ]
    assert table.lines == (("x", "none", "1000", "1000", "1000", "0.0%", "0.0%", "0.0%"),)
