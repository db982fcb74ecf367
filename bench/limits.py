"""The least time a check can take on this machine: its multiplies at the int8 peak, or its weights once from
memory.

Counted is what has to be computed: every token through all layers but the last, of which only keys and values
are needed except for the slots that are read. Attention and the head are not counted, so shares of the peak
are too low rather than too high.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from aegis_edge import machine

# A turn's measurement, for each of the two peaks: as long as a scorer's turn.
_SECONDS = 0.1
# Bytes a weight, group scales of w4a8 included: (16 + 1) bytes for 32 weights.
_BYTES = {"w8a8": 1.0, "w4a8": 17 / 32, "bf16": 2.0}


class Peaks:
    """The machine's peaks, measured in turns with scorers (timing.interleave)."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.found: list[dict[str, float]] = []

    def turn(self) -> None:
        self.found.append(machine.peaks(self.threads, _SECONDS))

    def median(self, since: int = 0) -> dict[str, float]:
        """Of the turns from number `since` on."""
        return {key: median(turn[key] for turn in self.found[since:]) for key in self.found[since]}

    def best(self) -> dict[str, float]:
        return {key: max(turn[key] for turn in self.found) for key in self.found[0]}


def operations(model: Mapping[str, Any], tokens: int, slots: int) -> int:
    """Operations (2 a multiply-add) of `tokens` new tokens of which `slots` are read. model: the manifest's
    section."""
    kv: int = 2 * model["hidden"] * model["kv_heads"] * model["head_dim"]
    rest = _layer(model) - kv
    layers: int = model["layers"]
    return 2 * (tokens * (layers - 1) * _layer(model) + tokens * kv + slots * rest)


def weight_bytes(model: Mapping[str, Any], scheme: str) -> float:
    """Bytes of the layers' matrices, all of which one check reads."""
    return model["layers"] * _layer(model) * _BYTES[scheme]


def seconds(operations: float, weight_bytes: float, peaks: Mapping[str, float]) -> float:
    """The limit on a machine with these peaks (machine.peaks)."""
    return max(operations / peaks["int8_peak"], weight_bytes / peaks["read_bandwidth"])


def _layer(model: Mapping[str, Any]) -> int:
    """Weights of one layer."""
    queries = model["heads"] * model["head_dim"]
    keys_values = 2 * model["kv_heads"] * model["head_dim"]
    hidden, mlp = model["hidden"], model["intermediate"]
    return int(hidden * (queries + keys_values) + queries * hidden + 3 * hidden * mlp)
