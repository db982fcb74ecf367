"""The GEMM alone, beside the register-only peak of the same moments: `aegis-edge bench --gemm`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from aegis_edge import machine

# Tokens in a pass.
ROWS = (16, 32, 64, 128, 256, 512)
# The trunk of Llama-3.2-1B, in the manifest's names.
ONE_BILLION = {
    "layers": 16,
    "hidden": 2048,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 64,
    "intermediate": 8192,
}
# Copies of the weights that calls go through in turn: with 1 they stay in cache, with these they come from
# memory, as in a pass through a whole model. 128 MB are past any cache that two cores have to themselves.
MEMORY_BYTES = 128 << 20

Row = dict[str, Any]


def shapes(model: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a layer's matrices. model: the manifest's section."""
    queries = model["heads"] * model["head_dim"]
    keys_values = 2 * model["kv_heads"] * model["head_dim"]
    hidden, mlp = model["hidden"], model["intermediate"]
    return {
        "qkv": (queries + keys_values, hidden),
        "o": (hidden, queries),
        "gate_up": (2 * mlp, hidden),
        "down": (hidden, mlp),
    }


def run(models: Mapping[str, Mapping[str, int]], threads: int, done: Callable[[], None]) -> list[Row]:
    """A row for each model, matrix, number of tokens and place of the weights; `done` is called after
    each."""
    native = importlib.import_module("aegis_edge._native")
    rows = []
    for name, model in models.items():
        for matrix, (n, k) in shapes(model).items():
            for tokens in ROWS:
                for place, copies in (("cache", 1), ("memory", -(-MEMORY_BYTES // (n * k)))):
                    speed, peak = native.gemm_speed(tokens, n, k, threads, copies)
                    row = {"model": name, "matrix": matrix, "outputs": n, "inputs": k, "tokens": tokens}
                    row |= {"weights_from": place, "gops": speed / 1e9, "peak_gops": peak / 1e9}
                    rows.append({"kind": "gemm", "share_of_peak": speed / peak, **row})
                    done()
    about = machine.describe(threads)
    return [row | about for row in rows]


def count(models: Mapping[str, Mapping[str, int]]) -> int:
    """Rows that `run` gives."""
    return sum(2 * len(ROWS) * len(shapes(model)) for model in models.values())


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """A table's lines: a line a matrix and place of the weights, a column a number of tokens, shares of the
    peak."""
    share = {
        (r["model"], r["matrix"], r["weights_from"], r["tokens"]): f"{r['share_of_peak']:.0%}" for r in rows
    }
    keys = dict.fromkeys(key[:3] for key in share)
    size = {(r["model"], r["matrix"]): f"{r['outputs']} x {r['inputs']}" for r in rows}
    return [
        ("model", "matrix", "outputs x inputs", "weights from", *(str(tokens) for tokens in ROWS)),
        *(
            (model, matrix, size[model, matrix], place, *(share[model, matrix, place, t] for t in ROWS))
            for model, matrix, place in keys
        ),
    ]
