"""The whole LM head: how much of the vocabulary's probability a guard's label tokens hold.

A verdict is a softmax over two label tokens. Where the model would rather have said something else
altogether, their share of the full softmax (label mass) is small, and the verdict worth less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aegis_edge.scoring import LogitArray

_CHUNK = 4096  # rows in fp32 at a time: 9 MB at a hidden size of 576


def softcapped(logits: LogitArray, cap: float) -> LogitArray:
    """cap tanh(logits / cap), as Gemma 2 ends its LM head; cap 0: the logits as they are."""
    return logits if cap == 0 else (np.tanh(logits / np.float32(cap)) * np.float32(cap)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """rows bf16 as uint16 [V, H]; unembed float32 [H, H] is applied to hidden states first, None: the
    identity; softcap: of the logits, 0: none."""

    rows: np.ndarray
    unembed: np.ndarray | None
    softcap: float = 0.0

    def row(self, token: int) -> np.ndarray:
        """The row that gives a token's logit from a hidden state, float32 [H]."""
        row = (self.rows[token].astype(np.uint32) << 16).view(np.float32)
        return row if self.unembed is None else self.unembed @ row

    def log_sum_exp(self, hidden: np.ndarray) -> LogitArray:
        """log sum exp of all logits for hidden states float32 [n, H] (after the final norm): float32 [n]."""
        hidden = hidden if self.unembed is None else hidden @ self.unembed
        total = np.full(len(hidden), -np.inf, np.float32)
        for start in range(0, len(self.rows), _CHUNK):
            rows = (self.rows[start : start + _CHUNK].astype(np.uint32) << 16).view(np.float32)
            logits = softcapped(hidden @ rows.T, self.softcap)
            top = logits.max(axis=1)
            part = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
            total = np.logaddexp(total, part)
        return total.astype(np.float32)
