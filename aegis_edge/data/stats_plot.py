"""The plot of `aegis-edge data stats`. Needs matplotlib (the extra `evaluate`)."""

from __future__ import annotations

from collections import Counter

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aegis_edge import plots, taxonomy
from aegis_edge.data.stats import NO_CATEGORY, Cell, Statistics, category_name
from aegis_edge.plots import plain

COLOURS = {"safe": "tab:green", "unsafe": "tab:red", "unlabelled": "tab:gray"}


def png(statistics: Statistics) -> bytes:
    """Three panels, a bar or a group of bars a split: labels of both turns, categories, label sources."""
    figure = Figure(figsize=(16, 7), layout="constrained")
    labels, categories, sources = figure.subplots(1, 3)
    _labels(labels, statistics)
    codes = [hazard.code for hazard in taxonomy.HAZARDS] + [NO_CATEGORY]
    names = {code: category_name(code) for code in codes}
    _bars(categories, statistics, statistics.categories, names, "Categories of unsafe dialogues")
    told = sorted({what for _, what in statistics.label_sources})
    _bars(sources, statistics, statistics.label_sources, {what: what for what in told}, "Label sources")
    return plots.png(figure)


def _labels(axes: Axes, statistics: Statistics) -> None:
    ticks = [(split, turn) for split in statistics.splits for turn in ("prompt", "response")]
    below = [0] * len(ticks)
    for label, colour in COLOURS.items():
        heights = [statistics.labels[split, f"{turn} {label}"] for split, turn in ticks]
        axes.bar(range(len(ticks)), heights, bottom=below, color=colour, label=label)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    names = [f"{plain(split)}\n{turn}" for split, turn in ticks]
    axes.set_xticks(range(len(ticks)), names, fontsize=8)
    axes.set(title="Labels", ylabel="records")
    axes.legend()


def _bars(axes: Axes, statistics: Statistics, of: Counter[Cell], names: dict[str, str], title: str) -> None:
    """Horizontal bars, a group a name, a bar a split; counts of splits differ by orders: a log scale."""
    height = 0.8 / max(1, len(statistics.splits))
    for number, split in enumerate(statistics.splits):
        places = [row + (number + 0.5) * height - 0.4 for row in range(len(names))]
        values = [of[split, key] for key in names]
        axes.barh(places, values, height=height, label=plain(split))
    axes.set_yticks(range(len(names)), [plain(name) for name in names.values()], fontsize=8)
    axes.set_xscale("symlog", linthresh=1)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="records")
    if statistics.splits:
        axes.legend(fontsize=8)
