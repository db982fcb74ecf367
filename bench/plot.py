"""The plot of a report: time against length, and what remains to the machine's limit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")  # no display

from matplotlib import pyplot

from aegis_edge.bench.tables import of_kind, scorers


def png(rows: Sequence[dict[str, Any]]) -> bytes:
    """Two panels, a line a scorer: one check under the guard's policy, and the forward pass without one."""
    times = of_kind(rows, "time")
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes, group, title in zip(
        panels,
        ("policy", "bare"),
        ("One check under the guard's policy", "One check without a policy"),
        strict=True,
    ):
        chosen = [row for row in times if row["group"] == group]
        ticks = sorted({row["tokens"] for row in chosen})
        for number, name in enumerate(scorers(times)):
            line = sorted((row for row in chosen if row["scorer"] == name), key=lambda row: row["tokens"])
            lengths, medians = [row["tokens"] for row in line], [row["p50_ms"] for row in line]
            tails = [max(0.0, row["p90_ms"] - row["p50_ms"]) for row in line]
            width = 2.5 if number == 0 else 1.3
            axes.errorbar(
                lengths,
                medians,
                yerr=[[0.0] * len(tails), tails],
                label=name,
                lw=width,
                marker="o",
                ms=3,
                capsize=2,
            )
        limit = sorted({(row["tokens"], row["limit_ms"]) for row in chosen})
        axes.plot(*zip(*limit, strict=True), color="black", ls=":", label="machine's limit")
        axes.set(
            xscale="log", yscale="log", title=title, xlabel="tokens", ylabel="milliseconds (p50, bar to p90)"
        )
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3, which="both")
    panels[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
