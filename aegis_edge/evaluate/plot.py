"""The plots of a report. Needs matplotlib (the extra `evaluate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aegis_edge import plots
from aegis_edge.evaluate.summary import Turn
from aegis_edge.plots import plain

Guards = Sequence[Mapping[str, Any]]


def png(guards: Guards, turn: Turn) -> bytes | None:
    """Reliability, ROC, accuracy by source, recall by category of a turn; None where no guard judged one."""
    shown = [guard for guard in guards if guard[turn]]
    if not shown:
        return None
    parts = [(part, key) for part, key in _BARS if any(guard[turn][part] for guard in shown)]
    figure = Figure(figsize=(5.5 * (2 + len(parts)), 5), layout="constrained")
    panels = figure.subplots(1, 2 + len(parts))
    _reliability(panels[0], shown, turn)
    _roc(panels[1], shown, turn)
    for axes, (part, key) in zip(panels[2:], parts, strict=True):
        _bars(axes, shown, turn, part, key)
    return plots.png(figure)


_BARS = (("by_source", "accuracy"), ("by_category", "recall"))
_TITLES = {"by_source": "Accuracy by source", "by_category": "Recall by category"}


def _reliability(axes: Axes, guards: Guards, turn: Turn) -> None:
    axes.plot([0, 1], [0, 1], color="gray", ls=":")
    for guard in guards:
        bins = guard[turn]["reliability"]
        total = sum(bar["count"] for bar in bins)
        # A point's area is its share of the turns: a far point of few turns weighs little in the error.
        sizes = [20 + 400 * bar["count"] / total for bar in bins]
        x, y = [bar["probability"] for bar in bins], [bar["unsafe"] for bar in bins]
        label = f"{plain(guard['name'])}: ECE {guard[turn]['overall']['ece']:.3f}"
        line = axes.plot(x, y, lw=1, label=label)[0]
        axes.scatter(x, y, s=sizes, alpha=0.5, color=line.get_color())
    axes.set(title="Reliability", xlabel="mean P(unsafe)", ylabel="share unsafe", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)


def _roc(axes: Axes, guards: Guards, turn: Turn) -> None:
    axes.plot([0, 1], [0, 1], color="gray", ls=":")
    for guard in guards:
        points = guard[turn]["roc"]
        if points:
            label = f"{plain(guard['name'])}: AUROC {guard[turn]['overall']['auroc']:.3f}"
            line = axes.plot(*zip(*points, strict=True), label=label)[0]
            overall = guard[turn]["overall"]
            axes.plot(overall["false_positive_rate"], overall["recall"], "o", color=line.get_color())
    axes.set(title="ROC; the dot is the threshold", xlabel="false positive rate", ylabel="recall")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _bars(axes: Axes, guards: Guards, turn: Turn, part: str, key: str) -> None:
    names = list(dict.fromkeys(name for guard in guards for name in guard[turn][part]))
    height = 0.8 / len(guards)
    for number, guard in enumerate(guards):
        values = [guard[turn][part].get(name, {}).get(key, 0.0) for name in names]
        places = [row + (number + 0.5) * height - 0.4 for row in range(len(names))]
        axes.barh(places, values, height=height, label=plain(guard["name"]))
    axes.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=_TITLES[part], xlim=(0, 1))
